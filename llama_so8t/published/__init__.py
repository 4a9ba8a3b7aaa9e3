"""Published SO8T checkpoint layouts: which one a checkpoint has, what it means, and the base model in it."""

from llama_so8t.published.identify import Signature, identify
from llama_so8t.published.restore import Restored, as_base, restore
from llama_so8t.published.table import BY_ID, LAYOUTS, Layout

__all__ = ["BY_ID", "LAYOUTS", "Layout", "Restored", "Signature", "as_base", "identify", "restore"]
