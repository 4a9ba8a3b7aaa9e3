#!/usr/bin/env bash
# One would expect: pymerkle, whose tree has the roots of RFC 9162 (Certificate Transparency), gives that RFC's
# inclusion proofs too.
# What happens: the root is the RFC's, the proof is not: leaves count from 1, the path begins with the leaf itself (one
# hash more), and each hash comes with a side ("rule"), where the RFC has the siblings alone. verify_inclusion returns
# None when all is well, so `if verify_inclusion(...)` takes every good proof for a bad one; a bad proof raises.
# Versions: pymerkle 7.0.0.
# Why it matters: proofs of transparency logs are checked by programs of other people. That the roots agree is what a
# first test looks at.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pymerkle==7.0.0
venv/bin/python - <<'PY'
import hashlib
import importlib.metadata as metadata

from pymerkle import InmemoryTree, InvalidProof, verify_inclusion

print("pymerkle", metadata.version("pymerkle"))


def sha256(data):
    return hashlib.sha256(data).digest()


def node(left, right):
    return sha256(b"\x01" + left + right)


tree = InmemoryTree(algorithm="sha256")
for i in range(5):
    tree.append_entry(f"entry {i}".encode())
leaves = [sha256(b"\x00" + f"entry {i}".encode()) for i in range(5)]
left = node(node(leaves[0], leaves[1]), node(leaves[2], leaves[3]))
rfc_path = [leaves[3], node(leaves[0], leaves[1]), leaves[4]]  # of the third leaf
proof = tree.prove_inclusion(3)
path = [bytes.fromhex(digest) for digest in proof.serialize()["path"]]
result = verify_inclusion(tree.get_leaf(3), tree.get_root(), proof)
print("root as in the RFC:", tree.get_root() == node(left, leaves[4]))
print("hashes in the proof of the third leaf:", len(path), "- in the RFC's:", len(rfc_path))
print("path, sorted into the RFC's:", [rfc_path.index(digest) if digest in rfc_path else "leaf itself" for digest in path])
print("verify_inclusion of a good proof returns", result)
assert tree.get_root() == node(left, leaves[4])
assert tree.get_leaf(3) == leaves[2]
assert len(path) == 4 and leaves[2] in path and path != rfc_path
assert result is None
try:
    verify_inclusion(tree.get_leaf(2), tree.get_root(), proof)
    raise SystemExit("a bad proof was accepted")
except InvalidProof as error:
    print("a bad one raises InvalidProof:", error)
print("as stated")
PY
