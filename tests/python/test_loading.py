"""Loading the bundled model with the real engine: files, options, log, closing."""

from __future__ import annotations

import json
import sys
import threading

import pytest

from pyaircache import ArgumentError, Chat, EngineError, ModelError, ProjectorError, StateError, model_files
from pyaircache.engine import engine as engine_module
from pyaircache.engine.engine import Engine


def test_close_is_repeatable(engine, samples):
    chat = Chat(n_threads=1)
    assert "Chat(" in repr(chat)
    chat.close()
    chat.close()
    with pytest.raises(StateError):
        chat.ask(samples[0].picture, samples[0].question)


@pytest.mark.parametrize("cache_type", ["f32", "bf16", "q8_0", "q4_0"])
def test_cache_types(samples, cache_type, engine):
    with Chat(cache_type_k=cache_type, cache_type_v=cache_type, n_threads=1) as chat:
        report = chat.ask(samples[0].picture, samples[0].question, keep=0.5).report
        assert report.kv_bytes < report.kv_bytes_full
        first = chat.ask(samples[0].picture, samples[0].question, keep=1.0)
        if cache_type != "q4_0":
            assert first == samples[0].answer


def test_wrong_files(engine, tmp_path):
    folder = model_files.bundled_dir()
    model, mmproj = folder / model_files.BUNDLED_MODEL, folder / model_files.BUNDLED_MMPROJ
    with pytest.raises(ModelError, match="projector"):
        Chat(mmproj)
    with pytest.raises(ProjectorError):
        Chat(model, model)
    (tmp_path / "cut.gguf").write_bytes(model.read_bytes()[:200_000])
    with pytest.raises(ModelError):
        Chat(tmp_path / "cut.gguf")
    (tmp_path / "head.gguf").write_bytes(model.read_bytes()[:9])
    with pytest.raises(ModelError):
        Chat(tmp_path / "head.gguf")
    with pytest.raises(ArgumentError, match="cache_type_k must be one of f32, f16"):
        Chat(cache_type_k="f64")


def test_text_model_alone(engine, tmp_path, samples):
    model = tmp_path / "text.gguf"
    model.write_bytes((model_files.bundled_dir() / model_files.BUNDLED_MODEL).read_bytes())
    with Chat(model, n_threads=1) as chat:
        assert not chat.info.vision
        with pytest.raises(ProjectorError, match="mmproj"):
            chat.ask(samples[0].picture, "What is the total?")
        assert chat.ask(None, "What is the total?", max_tokens=3).report.answer_tokens <= 3


def test_rpc_server_that_does_not_answer(engine):
    with pytest.raises(EngineError, match="no RPC server answers"):
        Chat(rpc_servers="127.0.0.1:1")


def test_info(real_chat):
    info = real_chat.info
    assert info.architecture == "qwen2vl" and info.vision and info.can_compress and info.n_layers == 6
    assert json.dumps(info.to_dict())


def test_verbose_log_goes_to_stderr_and_else_nowhere(engine, capfd):
    with Chat(n_threads=1):
        pass
    quiet = capfd.readouterr()
    assert (quiet.out, quiet.err) == ("", "")
    with Chat(n_threads=1, verbose=True):
        pass
    loud = capfd.readouterr()
    assert loud.out == "" and "llama" in loud.err
    with Chat(n_threads=1):
        pass
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
def test_a_dropped_chat_frees_its_model(engine):
    chat = Chat(n_threads=1)
    pointer = chat._engine
    del chat
    assert pointer.closed


@pytest.mark.parametrize("handler", [Engine.cancel, Engine.close])
def test_a_signal_handler_in_the_middle_of_a_cancel(engine, monkeypatch, handler):
    """It comes between two bytecodes: after the engine's pointer has been read, before C gets it."""
    freed, cancelled = [], []
    free = engine_module.free_in
    monkeypatch.setattr(engine_module, "free_in", lambda *arguments: (freed.append(True), free(*arguments)))
    model, mmproj = model_files.resolve(None, None)
    loaded = Engine(model, mmproj, n_threads=1, n_ctx=256)

    class Library:
        """The engine's, with a signal in front of the first pac_cancel."""

        def pac_cancel(self, pointer: object) -> None:
            loaded._lib = engine.lib
            handler(loaded)
            assert not freed
            engine.lib.pac_cancel(pointer)
            cancelled.append(True)

    loaded._lib = Library()
    thread = threading.Thread(target=loaded.cancel, daemon=True)
    thread.start()
    thread.join(30)
    assert cancelled, "the cancel waits for itself"
    assert freed == [True] * (handler is Engine.close)
    loaded.close()
    assert loaded.closed and freed == [True]
