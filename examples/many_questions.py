"""Many questions at once: their tokens are decoded together, and answers come as they are ready.

Each question is a conversation of its own; an error is that question's alone. The same for a list in a file:

    pyaircache batch questions.jsonl -o answers.jsonl

python examples/many_questions.py
"""

from pyaircache import Chat, sample

pages = [sample(number) for number in range(5)]
questions = [(page.path, page.question) for page in pages]
questions.append({"image": pages[0].path, "question": pages[0].question, "keep": 0.5})  # options of its own
questions.append(("nowhere.png", "What is this?"))

with Chat(keep=0.10, n_ctx=1024, n_threads=1) as chat:  # a model of your own: Chat("model.gguf")
    for done in chat.ask_many(questions, n_parallel=4):
        if done.error is not None:
            print(f"{done.index}: {type(done.error).__name__}")
        else:
            print(f"{done.index}: {done.answer}, {done.report.keep:.0%} kept")
    print("the conversation of the Chat itself:", chat.messages)
