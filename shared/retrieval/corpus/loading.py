"""Loading the built-in corpus, once: an unchanged passage is neither embedded nor written again."""

from importlib.resources import files

from shared.retrieval.ports import Document
from shared.retrieval.retriever import Retriever


def corpus_documents() -> tuple[Document, ...]:
    """One document per file of the corpus folder, for everyone."""
    folder = files("shared.retrieval.corpus")
    pages = sorted((page for page in folder.iterdir() if page.name.endswith(".md")), key=lambda page: page.name)
    return tuple(
        Document(
            id=f"fleet/{page.name.removesuffix('.md')}",
            text=page.read_text("utf-8").strip(),
            source=f"corpus/{page.name}",
        )
        for page in pages
    )


async def ensure_corpus(retriever: Retriever) -> int:
    """Load the corpus where it is missing or outdated; says how many passages were written, 0 the second time.

    Raises: VectorsUnavailable.
    """
    return await retriever.add(corpus_documents())
