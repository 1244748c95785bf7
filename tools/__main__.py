"""`python -m tools` (or `make docs`) writes every generated document that is not current, and names it."""

from __future__ import annotations

from tools.documents import ROOT, write_documents

if __name__ == "__main__":
    for written in write_documents():
        print(written.resolve().relative_to(ROOT))
