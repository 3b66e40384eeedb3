"""One Chat and several threads: questions queue, and one of them can be cancelled.

For questions at the same time, use several Chats, or the server: docs/threads.md.

python examples/threads.py
"""

from concurrent.futures import ThreadPoolExecutor

from pyaircache import BusyError, CancelledError, Chat, sample

PAGES = [sample(number) for number in range(5)]

with Chat(keep=0.10, n_threads=1) as chat:
    with ThreadPoolExecutor(len(PAGES)) as pool:  # served one by one, in the order of coming
        answers = list(pool.map(lambda page: chat.ask(page.path, page.question), PAGES))
    for page, answer in zip(PAGES, answers, strict=True):
        print(f"{page.question} {answer}")

    with chat.ask(PAGES[0].path, PAGES[0].question, stream=True) as stream:
        with ThreadPoolExecutor(1) as pool:  # the stream holds the Chat; this thread will not wait
            waiting = pool.submit(chat.ask, PAGES[1].path, PAGES[1].question, timeout=0)
            print("meanwhile:", type(waiting.exception()).__name__)
            assert isinstance(waiting.exception(), BusyError)
        chat.cancel()  # from any thread, at any time
        try:
            print(stream.read())
        except CancelledError as error:
            print("cancelled:", error)

    text = chat.ask(None, "How are you?", max_tokens=4, follow_up=False)
    print("text only:", text.report.visual_tokens, "visual tokens")
