"""The first question: the small model and a page that are in the package; nothing is downloaded.

python examples/first_question.py
"""

from pyaircache import Chat, sample

page = sample()  # a picture's path, a question about it, and the right answer

with Chat(keep=0.10) as chat:  # a model of your own: Chat("model.gguf"), with its mmproj file in the same folder
    answer = chat.ask(page.path, page.question)

print(page.question)
print(answer)  # a str
print("right" if answer == page.answer else f"wrong: it is {page.answer}")

report = answer.report
print(f"{report.visual_tokens} visual tokens in {report.layers} layers")
print(f"{report.cells_kept} of {report.visual_tokens * report.layers} visual cells were kept")
print(f"the cache holds {report.kv_bytes} of {report.kv_bytes_full} bytes")
