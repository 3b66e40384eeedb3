"""The server, asked by the openai client: any program that speaks to OpenAI can use it in this way.

Here the example starts and ends it; by hand: pyaircache serve --aircache-keep 0.1 --port 8080
"""

import base64
import socket
import subprocess
import sys

import openai

from pyaircache import sample

with socket.create_server(("127.0.0.1", 0)) as free:
    port = str(free.getsockname()[1])

page = sample()
picture = {"url": "data:image/png;base64," + base64.b64encode(page.path.read_bytes()).decode()}
content = [{"type": "image_url", "image_url": picture}, {"type": "text", "text": page.question}]
messages = [{"role": "user", "content": content}]

command = [sys.executable, "-m", "pyaircache", "serve", "--aircache-keep", "0.1", "--port", port]
with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=20)  # while it loads
        for keep in (1.0, 0.2):  # a request may set it anew
            answer = client.chat.completions.create(
                model="any", messages=messages, temperature=0, extra_body={"aircache_keep": keep}
            )
            print(keep, answer.choices[0].message.content, answer.timings.get("aircache"))
    finally:
        server.terminate()
