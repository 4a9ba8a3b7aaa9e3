"""Audit logs of llama-server (docs/audit.md): verified, shown, counted, exported, searched."""

from llama_so8t.audit.log import AuditError, Log
from llama_so8t.audit.verification import AuditReport, render, verify

__all__ = ["AuditError", "AuditReport", "Log", "render", "verify"]
