"""An answer as it comes, piece by piece, and one that is stopped in the middle.

python examples/streaming.py
"""

from pyaircache import Chat, sample

page = sample()

with Chat() as chat:
    # The prompt is evaluated when ask is called; each step of the loop makes one more piece.
    with chat.ask(page.path, page.question, stream=True) as stream:
        for piece in stream:
            print(piece, end="", flush=True)
    print()
    print(f"{stream.report.tokens_per_second:.0f} tokens/s, stopped by: {stream.report.stop_reason}")

    # Leaving the block early closes the stream: what was said until then is the answer.
    with chat.ask(page.path, page.question, stream=True) as stream:
        piece = next(stream)
    print(f"closed after {piece!r}: {stream.answer!r}, stopped by: {stream.report.stop_reason}")
