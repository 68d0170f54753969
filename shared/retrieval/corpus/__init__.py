"""What the fleet says about itself: one passage a file, found by everyone.

What it is: short texts in English, and `loading`, which puts them into a vector store once. What it never does: hold
anything of a user. Who may enter: mains, and whoever wants a known set of passages.
"""

from shared.retrieval.corpus.loading import ensure_corpus

__all__ = ["ensure_corpus"]
