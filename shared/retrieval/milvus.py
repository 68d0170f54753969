"""The vector port on Milvus, real or embedded: a blocking client in a few threads, and an end to every call."""

import asyncio
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from shared.clock import Clock, SystemClock
from shared.errors import Misconfigured, VectorsUnavailable
from shared.retrieval.knobs import RetrievalKnobs
from shared.retrieval.ports import Document, Passage, Vector

Result = TypeVar("Result")

EVERYONE = "everyone"
GRACE_S = 0.5


class MilvusVectors:
    """`VectorPort`; connects at the first call and again after a failure. Close it at the end of the process."""

    def __init__(self, knobs: RetrievalKnobs, *, dimensions: int, clock: Clock | None = None) -> None:
        self._knobs = knobs
        self._clock = clock or SystemClock()
        self._resting_until = float("-inf")
        self._dimensions = dimensions
        self._threads = ThreadPoolExecutor(max_workers=knobs.threads, thread_name_prefix="vectors")
        self._connecting = threading.Lock()
        self._client: Any = None

    async def upsert(self, documents: Sequence[tuple[Document, Vector]]) -> None:
        """See `VectorPort.upsert`."""
        rows = [
            {
                "id": _row_id(document),
                "scope": _scope(document.tenant),
                "document": document.id,
                "text": document.text,
                "source": document.source,
                "vector": list(vector),
            }
            for document, vector in documents
        ]
        if rows:
            await self._call(lambda client, limits: client.upsert(data=rows, **limits))

    async def search(self, vector: Vector, *, k: int, tenant: str | None = None) -> tuple[Passage, ...]:
        """See `VectorPort.search`."""
        scopes = [EVERYONE] if tenant is None else [EVERYONE, _scope(tenant)]
        found = await self._call(
            lambda client, limits: client.search(
                data=[list(vector)],
                limit=k,
                filter=f"scope in {json.dumps(scopes)}",
                output_fields=["document", "text", "source"],
                **limits,
            )
        )
        return tuple(
            Passage(
                id=hit["entity"]["document"],
                text=hit["entity"]["text"],
                score=round(float(hit["distance"]), 6),
                source=hit["entity"]["source"],
            )
            for hit in found[0]
        )

    async def texts(self, documents: Sequence[Document]) -> dict[Document, str]:
        """See `VectorPort.texts`."""
        rows = {_row_id(document): document for document in documents}
        if not rows:
            return {}
        found = await self._call(
            lambda client, limits: client.get(ids=list(rows), output_fields=["id", "text"], **limits)
        )
        return {rows[row["id"]]: row["text"] for row in found}

    async def aclose(self) -> None:
        """Drop the connection and end the threads."""
        await asyncio.to_thread(self._disconnect, self._client)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _call(self, ask: Callable[[Any, dict[str, Any]], Result]) -> Result:
        """Run one blocking call in a thread; the thread ends by the client's own limit, the caller by ours."""
        self._check_rested()
        timeout_s = self._knobs.timeout_s if self._client is not None else self._knobs.setup_timeout_s
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s + GRACE_S):
                return await loop.run_in_executor(self._threads, self._call_now, ask)
        except TimeoutError:
            raise VectorsUnavailable(
                f"{self._knobs.uri} gave no answer within {timeout_s:g} s", uri=self._knobs.uri
            ) from None

    def _call_now(self, ask: Callable[[Any, dict[str, Any]], Result]) -> Result:
        limits = {"collection_name": self._knobs.collection, "timeout": self._knobs.timeout_s}
        client = None
        try:
            client = self._connected()
            return ask(client, limits)
        except _failures() as error:
            self._disconnect(client)
            raise VectorsUnavailable(
                f"{self._knobs.uri} does not answer: {_first_line(error)}", uri=self._knobs.uri
            ) from error

    def _connected(self) -> Any:
        with self._connecting:
            self._check_rested()  # again: it may have failed for the thread before us
            if self._client is None:
                try:
                    self._client = self._connect()
                except _failures():
                    self._resting_until = self._clock.monotonic() + self._knobs.rest_s
                    raise
            return self._client

    def _check_rested(self) -> None:
        if self._client is None and self._clock.monotonic() < self._resting_until:
            raise VectorsUnavailable(f"{self._knobs.uri} did not answer just now", uri=self._knobs.uri)

    def _connect(self) -> Any:
        # It prints every failed call with its traceback; the error we raise says the same once.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        client = _pymilvus().MilvusClient(
            uri=self._knobs.uri,
            token=self._knobs.token.get_secret_value(),
            timeout=self._knobs.timeout_s,
            dedicated=True,
        )
        try:
            self._ensure_collection(client)
        except BaseException:
            client.close()
            raise
        return client

    def _ensure_collection(self, client: Any) -> None:
        name, timeout_s = self._knobs.collection, self._knobs.setup_timeout_s
        if not client.has_collection(name, timeout=timeout_s):
            try:
                _create(client, name, dimensions=self._dimensions, timeout_s=timeout_s)
            except _pymilvus().MilvusException:
                if not client.has_collection(name, timeout=timeout_s):  # else another process was faster
                    raise
        fields = client.describe_collection(name, timeout=timeout_s)["fields"]
        stored = {field["name"]: field["params"].get("dim") for field in fields}
        if stored.get("vector") != self._dimensions:
            raise Misconfigured(
                f"collection {name} holds vectors of {stored.get('vector')} dimensions, the embedder makes "
                f"{self._dimensions}: choose another FLEET_VECTORS_COLLECTION",
                collection=name,
            )
        # A restarted embedded server has all its collections but serves none of them until they are loaded.
        client.load_collection(name, timeout=timeout_s)

    def _disconnect(self, client: Any) -> None:
        with self._connecting:
            if client is None or client is not self._client:  # another thread has replaced it already
                return
            self._client = None
        client.close()


def _pymilvus() -> Any:
    # Imported at the first call: it brings pandas, 2 s and 90 MB to a process that may never search.
    import pymilvus

    return pymilvus


def _failures() -> tuple[type[BaseException], ...]:
    import grpc  # type: ignore[import-untyped]  # at the first call, as pymilvus, which lets a passed deadline through

    return (_pymilvus().MilvusException, grpc.RpcError, OSError)


def _create(client: Any, name: str, *, dimensions: int, timeout_s: float) -> None:
    types = _pymilvus().DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", types.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("scope", types.VARCHAR, max_length=64)
    schema.add_field("document", types.VARCHAR, max_length=1024)
    schema.add_field("text", types.VARCHAR, max_length=65_535)
    schema.add_field("source", types.VARCHAR, max_length=1024)
    schema.add_field("vector", types.FLOAT_VECTOR, dim=dimensions)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
    # Session: a process finds what it wrote itself, and waits for nobody else's writes.
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Session", timeout=timeout_s)


def _scope(tenant: str | None) -> str:
    """A tenant as a hash: a filter is an expression in Milvus' own language, and no name may speak it."""
    return EVERYONE if tenant is None else hashlib.sha256(tenant.encode()).hexdigest()


def _row_id(document: Document) -> str:
    """Tenant and id as one key: two tenants may use the same id."""
    return hashlib.sha256(f"{_scope(document.tenant)}\x00{document.id}".encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
