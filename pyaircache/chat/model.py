"""A model that is loaded once, for several Chats."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from .. import model_files
from ..checks import flag, whole
from ..engine import fork, log, rpc
from ..engine.model import EngineModel
from ..engine.protocol import ModelLike
from ..engine.structs import ModelInfo
from ..errors import StateError, UnsupportedError
from ..progress import OnProgress, ProgressLine, callback
from .gate import Gate, Lease

_MAX_THREADS = 512  # ggml's


class Model:
    """A loaded model, on which any number of `Chat` objects have their conversations.

    ::

        with Model("model.gguf") as model, Chat(model) as one, Chat(model, keep=0.5) as two:
            ...

    Each Chat has a KV cache of its own; the weights, and the pictures that were encoded, are there once. Chats of one
    Model answer in different threads at the same time; only the encoding of pictures waits for one another.

    The weights are freed when the Model *and* all Chats on it are closed: a Chat keeps its Model alive, and `close` is
    never refused. Not usable in a forked child.

    Args:
        model: Path of the language model's GGUF file; None: the small bundled model.
        mmproj: Path of its vision projector; None: the ``*mmproj*.gguf`` file in the model's folder, if there is one;
            False: none, whatever lies beside the model.
        n_gpu_layers: Layers on the GPU; -1: all. Without effect in a CPU build.
        n_threads: CPU threads of the vision tower, and of Chats that name no number of their own; at most 512; None or
            0: one per physical core.
        rpc_servers: ``"host:port"`` of ggml RPC servers to compute on, several separated by commas or as a list.
        image_cache_bytes: Memory for the embeddings of pictures that were encoded: another question about one of them
            encodes nothing. Those unused for longest go first. None: 256 MiB; 0: none are kept.
        on_progress: Called while loading, with ("load", done, total); what it raises ends the loading and comes out.
        verbose: Show llama.cpp's log on stderr while this Model is open.

    Raises:
        ModelNotFoundError: A file does not exist.
        ModelError: A file is not a GGUF, or not a model that can be loaded.
        ProjectorError: The projector does not fit, or several fit equally well.
        ArgumentError: A value is outside its limits.
        OutOfMemoryError: It does not fit into memory.
        ForkError: This process was forked while another thread was computing.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        mmproj: str | os.PathLike[str] | Literal[False] | None = None,
        *,
        n_gpu_layers: int = -1,
        n_threads: int | None = None,
        rpc_servers: str | Sequence[str] | None = None,
        image_cache_bytes: int | None = None,
        on_progress: OnProgress | None = None,
        verbose: bool = False,
    ) -> None:
        self.n_threads = threads(n_threads)
        options: dict[str, int | str | None] = {
            "n_gpu_layers": whole("n_gpu_layers", n_gpu_layers, -1, 2**31 - 1),
            "n_threads": self.n_threads,
            "rpc_servers": rpc.checked(rpc_servers),
            "image_cache_bytes": None
            if image_cache_bytes is None
            else whole("image_cache_bytes", image_cache_bytes, 0, 2**63 - 1),
        }
        told = callback(on_progress)
        self.path, mmproj_path = model_files.resolve(model, mmproj)
        self._pid = os.getpid()
        self._log = log.Listener() if flag("verbose", verbose) else None
        gate = Gate()  # a fork in the middle of the loading is seen by it
        try:
            with ProgressLine() as line:

                def progress(stage: int, done: int, total: int) -> None:
                    line(stage, done, total)
                    told(stage, done, total)

                self._loaded: ModelLike = gate.hold(
                    Lease(gate, "loading"),
                    lambda: EngineModel(self.path, mmproj_path, progress=progress, **options),
                )
        except BaseException:
            self._quieten()
            raise

    path: Path
    """The language model's file."""

    @property
    def info(self) -> ModelInfo:
        """What was loaded, and who uses it at the moment.

        Raises:
            StateError: The Model is closed.
            ForkError: This process was forked from the one that made it.
        """
        return self.loaded.info()

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._loaded.closed

    @property
    def loaded(self) -> ModelLike:
        """The `pyaircache.engine.EngineModel`.

        Raises:
            StateError: The Model is closed.
            ForkError: This process was forked from the one that made it.
        """
        fork.check(self._pid)
        if self._loaded.closed:
            raise StateError("this Model is closed")
        return self._loaded

    def forget_images(self) -> None:
        """Forgets the embeddings of pictures that were encoded, and frees their memory."""
        self.loaded.forget_images()

    def close(self) -> None:
        """No new Chats from now on; the weights are freed when the last Chat on it is closed. May be called again."""
        if self._pid == os.getpid():
            self._loaded.close()
            self._quieten()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._quieten()

    def __reduce__(self) -> Any:
        raise UnsupportedError(
            "a Model cannot be pickled or copied, since it lives in this process; load it in each process"
        )

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r}{', closed' if self._loaded.closed else ''})"

    def _quieten(self) -> None:
        listener = getattr(self, "_log", None)
        if listener is not None:
            listener.close()


def threads(value: int | None) -> int | None:
    """``n_threads``, checked.

    Raises:
        ArgumentError: It is outside its limits.
    """
    return None if value is None else whole("n_threads", value, 0, _MAX_THREADS)
