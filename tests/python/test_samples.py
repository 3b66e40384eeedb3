"""The sample pages of the package."""

from __future__ import annotations

import pytest

from pyaircache import ArgumentError, Chat, sample


def test_the_bundled_model_reads_its_first_page() -> None:
    page = sample()
    with Chat(n_threads=1) as chat:
        assert chat.ask(page.path, page.question) == page.answer
        assert chat.ask(page.image, page.question) == page.answer


def test_every_page_has_a_question_and_an_answer() -> None:
    pages = [sample(number) for number in range(5)]
    assert len({page.path for page in pages}) == 5
    assert all(page.path.is_file() and page.question and page.answer for page in pages)
    assert pages[0].image.mode == "RGB"


@pytest.mark.parametrize("number", [-1, 5, 1.5, "0", True])
def test_no_such_page(number: object) -> None:
    with pytest.raises(ArgumentError, match="number"):
        sample(number)  # type: ignore[arg-type]
