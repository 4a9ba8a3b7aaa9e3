"""Tables of `so8t bench run` and `so8t bench profile`."""

from llama_so8t.benchmarks import profile
from llama_so8t.benchmarks.table import render


def row(test, arm, value, median=1.0, low=1.0, high=1.0, n=9, threads=2):
    compared = {"median": median, "low": low, "high": high, "n": n}
    return {
        "shape": "4B", "outtype": "q8_0", "threads": threads, "test": test, "arm": arm, "value": value,
        "compared": compared,
    }  # fmt: skip


def test_one_line_per_test_and_one_column_per_arm():
    rows = [row("pp32", "qwen3", 10.0), row("pp32", "so8t fold", 9.9, 0.99, 0.985, 0.995)]
    rows += [row("tg16", "qwen3", 4.0), row("tg16", "so8t fold", 3.0, 0.75, 0.7, 0.8)]
    assert render(rows).splitlines()[2:6] == [
        "| model | threads | test | qwen3, t/s | so8t fold |",
        "| --- | --- | --- | --- | --- |",
        "| 4B Q8_0 | 2 | pp32 | 10.00 | 0.990 (0.985 to 0.995) |",
        "| 4B Q8_0 | 2 | tg16 | 4.00 | 0.750 (0.700 to 0.800) |",
    ]


def test_the_means_of_prompts_and_of_generation_are_apart():
    rows = [row("pp32", "qwen3", 10.0), row("tg16", "qwen3", 4.0), row("pp16", "qwen3", 4.0)]
    rows += [row("pp32", "x", 9.0, 0.9), row("pp16", "x", 4.0, 1.0), row("tg16", "x", 3.0, 0.75)]
    assert render(rows).splitlines()[-4:] == [
        "|  | x |",
        "| --- | --- |",
        "| prompt, 2 rows | 0.949 (0.900 to 1.000) |",
        "| generation, 1 row | 0.750 (0.750 to 0.750) |",
    ]


def test_each_kind_has_a_table_and_its_units():
    rows = [row("tg16", "qwen3", 4.0)]
    rows += [row("peak", "qwen3", 4.5e9, n=1, threads=None), row("peak", "x", 4.6e9, 1.0222, n=1, threads=None)]
    rows += [row("load", "qwen3", 0.5, threads=None), row("load", "x", 0.53, 0.03, -0.001, 0.04, threads=None)]
    rows += [row("instructions", "qwen3", 86.8e6, n=1, threads=None)]
    text = render(rows)
    assert [line for line in text.splitlines() if line and not line.startswith("|")] == [
        "Speed: tokens per second, and ratio to the base",
        "Speed: geometric means over the rows, and their intervals",
        "Memory: largest resident size, and ratio to the base",
        "Loading: ms, and ms more than the base",
        "Instructions: millions per generated token, and ratio to the base",
    ]
    assert "| 4B Q8_0 | 4500 | 1.0222 |" in text
    assert "| 4B Q8_0 | 500 | +30 (-1 to +40) |" in text
    assert "| 4B Q8_0 | 86.80 |" in text


def test_an_arm_that_was_not_measured_leaves_its_cell_empty():
    rows = [row("pp32", "qwen3", 10.0), row("tg16", "qwen3", 4.0), row("tg16", "x", 4.0)]
    assert "| 4B Q8_0 | 2 | pp32 | 10.00 |  |" in render(rows)


def test_a_profile_is_ordered_by_its_largest_parts():
    def model(name, **parts):
        return {
            "model": name, "seconds": 5e-3, "overhead": 1e-6,
            "parts": [{"name": key, "n_nodes": 2, "seconds": value} for key, value in parts.items()],
        }  # fmt: skip

    found = {"models": [model("base", ROPE=1e-3, ADD=3e-3), model("so8t", ROPE=1e-3, ADD=2e-3, rotations=5e-3)]}
    lines = profile.render(found).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| rotations", "| ADD", "| ROPE", "| sum", "| as a whole"]
    assert lines[2] == "| rotations |  |  |  | 2 | 5000.0 | 62.5 |"
    assert lines[5] == "| sum | 4 | 4000.0 | 100.0 | 6 | 8000.0 | 100.0 |"
