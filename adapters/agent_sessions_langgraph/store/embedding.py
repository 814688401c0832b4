"""Semantic search: texts of items to vectors, by LangGraph's `IndexConfig`, and which are the nearest."""

from __future__ import annotations

import asyncio
import math
import sys
from array import array
from collections.abc import Iterable, Sequence
from operator import mul
from typing import Any

from langgraph.store.base import IndexConfig, PutOp, ensure_embeddings, get_text_at_path, tokenize_path

from agent_sessions.errors import InvalidError, SerializationError

from .items import Vectors

_WHOLE = "$"

Vector = Sequence[float]


class Embedder:
    """Makes vectors with the user's own embedder, in the thread and event loop of the caller."""

    def __init__(self, config: IndexConfig) -> None:
        self._embeddings = ensure_embeddings(config.get("embed"))
        self._dims = config.get("dims")
        self._paths = [_path(path) for path in config.get("fields") or [_WHOLE]]

    def texts(self, op: PutOp) -> list[str]:
        """The texts by which an item is to be found."""
        if op.value is None or op.index is False:
            return []
        paths = self._paths if op.index is None else [_path(path) for path in op.index]
        value = dict(op.value)
        try:
            return [text for path in paths for text in get_text_at_path(value, path)]
        except TypeError:
            raise SerializationError(
                "the value has something in it that is not JSON, and can't be embedded with it: name the fields to "
                "embed (`fields` of the index, or `index=`)",
                field="value",
            ) from None

    def embed(self, texts: Iterable[str]) -> dict[str, Vector]:
        """The vector of each of the texts of items, of length 1."""
        unique = list(dict.fromkeys(texts))
        return self._checked(unique, self._embeddings.embed_documents(unique) if unique else [])

    async def aembed(self, texts: Iterable[str]) -> dict[str, Vector]:
        """`embed`, async."""
        unique = list(dict.fromkeys(texts))
        return self._checked(unique, await self._embeddings.aembed_documents(unique) if unique else [])

    def embed_queries(self, queries: Iterable[str]) -> dict[str, Vector]:
        """The vector of each of the queries, of length 1."""
        unique = list(dict.fromkeys(queries))
        return self._checked(unique, [self._embeddings.embed_query(query) for query in unique])

    async def aembed_queries(self, queries: Iterable[str]) -> dict[str, Vector]:
        """`embed_queries`, async."""
        unique = list(dict.fromkeys(queries))
        return self._checked(unique, await asyncio.gather(*map(self._embeddings.aembed_query, unique)))

    def _checked(self, texts: list[str], vectors: Sequence[Any]) -> dict[str, Vector]:
        if len(vectors) != len(texts):
            raise InvalidError(
                "INDEX", f"the embedder made {len(vectors)} vectors of {len(texts)} texts", field="index.embed"
            )
        lengths = {len(vector) for vector in vectors}
        expected = {self._dims} if self._dims else lengths - {0}
        if lengths - expected or len(lengths) > 1:
            raise InvalidError(
                "INDEX",
                f"the embedder made vectors of {', '.join(map(str, sorted(lengths)))} dimensions; all must have "
                f"{self._dims or 'the same number'}",
                field="index.dims",
            )
        return {text: _unit(vector) for text, vector in zip(texts, vectors, strict=True)}


def packed(vectors: Sequence[Vector]) -> Vectors | None:
    """Vectors as they are stored; None if there is none."""
    if not vectors:
        return None
    return Vectors(len(vectors[0]), _little_endian(array("f", [number for one in vectors for number in one])).tobytes())


def similarity(query: Vector, vectors: Vectors) -> float | None:
    """The cosine of the angle between the query and the nearest of an item's vectors; None if they don't compare."""
    if vectors.dims != len(query):
        return None  # it was put when another embedder was configured
    numbers = _little_endian(array("f", vectors.data)).tolist()
    starts = range(0, len(numbers), vectors.dims)
    return max(float(sum(map(mul, query, numbers[start : start + vectors.dims]))) for start in starts)


def _little_endian(numbers: array[float]) -> array[float]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _unit(vector: Iterable[Any]) -> Vector:
    numbers = [float(number) for number in vector]
    length = math.hypot(*numbers)
    return [number / length for number in numbers] if length else numbers


def _path(path: str) -> str | list[str]:
    return path if path == _WHOLE else tokenize_path(path)
