"""What runs: one room is one process with one `main`, and `main` is wiring only.

Rooms here never import each other; what two of them need lives in `shared`.
"""
