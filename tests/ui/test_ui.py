"""The page of the server in a browser, against fixed data."""

import json
import re
from pathlib import Path

import pytest
from selenium.webdriver import Keys
from selenium.webdriver.support.select import Select

from tests.ui import screenshot
from tests.ui.any_server import OVERFLOW, AnyServer, ask
from tests.ui.fake_server import HEADS, HOSTILE, PAGE, POLICY, TEXT, TOKENS, FakeServer

PIECES = """[...document.querySelectorAll(".answer:last-of-type > .text .token")].map((t) => [
  t.textContent, +t.style.getPropertyValue("--risk"), t.classList.contains("over"), t.classList.contains("risky"),
  t.classList.contains("trigger"), t.classList.contains("withheld")])"""

RULE = Path(__file__).parents[1] / "golden" / "verdict_rule.json"

NO_BIDI = str.maketrans("\u202e", "\ufffd")


def count(page, selector):
    return page.run(f"document.querySelectorAll({selector!r}).length")


def refresh(page):
    """Does at once what the page does each ten seconds."""
    page.wait("!busy")
    page.run("document.dispatchEvent(new Event('visibilitychange'))")


def escalate(page):
    page.type("#prompt", "please escalate this")
    page.press(Keys.ENTER)
    page.wait("document.querySelectorAll('.entry').length")


class TestAnyServer(AnyServer):
    """What holds for any server, asked of the stand-in."""

    @pytest.fixture
    def server(self):
        fake = FakeServer(key="secret")
        yield fake
        fake.close()


# ---- chat


def test_an_answer_streams(page, server):
    page.type("#prompt", "slow")
    page.press(Keys.ENTER)
    page.wait("document.querySelector('.answer[aria-busy] > .text')?.textContent === 'Locks'")
    server.go_on.set()
    page.wait("!document.querySelector('[aria-busy]')")
    assert page.run("document.querySelector('.answer > .text').textContent") == TEXT


def test_the_page_has_the_rule_of_the_guard(page):
    """tests/test_verdict_rule.py says how to read the table; the page judges positions, and counts no run."""
    page.wait("!!info")
    for case in json.loads(RULE.read_text())["cases"]:
        page.run(f"(() => {{ info.heads = {json.dumps(case['heads'])}; }})()")
        for given, expected in zip(case["positions"], case["expected"]["positions"], strict=True):
            for name, reached in expected["reached"].items():
                head = case["heads"][name]
                if not head.get("fitted", True):  # told as heads that allow
                    head, reached = head | {"actions": ["allow"] * len(head["labels"])}, []
                labels = dict(zip(head["labels"], given[name] or [None] * len(head["labels"]), strict=True))
                thresholds = dict(zip(head["labels"], head["thresholds"], strict=True))
                judged = {
                    label: page.run(
                        f"judge(info.heads.{name}, '{label}', {json.dumps(labels)}, {json.dumps(thresholds[label])})"
                    )
                    for label in labels
                }
                assert (
                    reached is None
                    or [label for label, found in judged.items() if found["over"] and found["action"] != "allow"]
                    == reached
                ), case["name"]
                actions = head["actions"] if reached is not None else ["refuse"] * len(labels)
                assert [found["action"] for found in judged.values()] == actions, case["name"]
                shown = page.run(f"riskOf({json.dumps({name: labels})}, {json.dumps({name: thresholds})})")
                assert shown["over"] == (reached is None or bool(reached)), case["name"]


def test_tokens_are_coloured_by_the_largest_risk_of_any_head(page):
    ask(page, "hello")
    pieces = page.run(PIECES)
    # a character that two tokens share is one piece with the larger risk
    expected = [(text, max(unsafe, escalate), unsafe >= 0.5 or escalate >= 0.6) for text, unsafe, escalate in TOKENS]
    expected[10:12] = [(" (⚙", 0.24, False)]
    assert [(text, over) for text, _, over, *_ in pieces] == [(text, over) for text, _, over in expected]
    assert [risk for _, risk, *_ in pieces] == pytest.approx([risk for _, risk, _ in expected])
    assert [risky for *_, risky, _, _ in pieces] == [risk >= 0.1 for _, risk, _ in expected]
    shades = page.run("['Lock', ' pick'].map((w) => getComputedStyle([...document.querySelectorAll('.token')]"
                      ".find((t) => t.textContent === w)).backgroundColor)")  # fmt: skip
    assert shades[0] != shades[1]
    assert page.run("document.querySelector('.answer > .text').textContent") == TEXT


def test_a_head_can_be_chosen(page):
    ask(page, "hello")
    for name, column in (("safety", 1), ("authority", 2)):
        Select(page.point("#head")).select_by_value(name)
        assert [risk for _, risk, *_ in page.run(PIECES)][:10] == pytest.approx(
            [token[column] for token in TOKENS[:10]]
        )


def test_the_mouse_and_the_keys_show_a_tokens_probabilities(page):
    ask(page, "hello")
    page.point(".token:nth-of-type(7)")
    assert page.text("#tip").split() == [
        '"', 'pick"', "answer,", "token", "6", "Head", "Label", "Probability", "safety", "safe", "0.390", "safety",
        "unsafe", "0.610", "≥", "0.500", "authority", "handle", "0.700", "authority", "escalate", "0.300",
    ]  # fmt: skip
    page.click("#prompt")
    page.wait("document.getElementById('tip').hidden")
    page.run("document.querySelector('.token[tabindex=\"0\"]').focus()")
    page.press(Keys.RIGHT)
    assert "answer, token 1" in page.text("#tip")
    assert count(page, ".token[tabindex='0']") == 1
    page.press(Keys.ESCAPE)
    page.wait("document.getElementById('tip').hidden")


def test_the_verdict_stands_beside_the_answer(page):
    ask(page, "hello")
    words = " ".join(page.text(".verdict").split())
    assert words.startswith("✓ allow: nothing was changed")
    assert "prompt: safety safe 0.960 unsafe 0.040 / 0.500" in words
    assert "answer: safety safe 0.980 unsafe 0.610 / 0.500" in words
    assert "answer: authority handle 0.950 escalate 0.600 / 0.600" in words
    assert "Audit line 7, c0ffee0000000000" in words


def test_a_refusal_stands_under_what_was_delivered(page):
    ask(page, "refuse this")
    assert page.run("document.querySelector('.answer > .text').textContent") == "Locks have pins; a"
    assert page.text(".stopped").split("\n") == ["Refused", POLICY["refusal"]]
    words = " ".join(page.text(".verdict").split())
    assert words.startswith("✕ refuse: the refusal text was sent")
    assert "Triggered by safety: unsafe 0.610, at token 6 of the answer" in words
    assert "unsafe 0.610 / 0.500, unsafe triggered at token 6" in words
    text, risk, over, _, trigger, withheld = page.run(PIECES)[-1]
    assert (text, risk, over, trigger, withheld) == ("", 0.61, True, True, True)
    page.point(".withheld")
    assert page.text("#tip").startswith("not delivered")
    assert "pick" not in page.run("document.body.textContent.split('<script>')[0].split('\"use strict\"')[0]")


def test_the_thoughts_of_a_model_stand_apart_from_its_answer(page):
    ask(page, "think about it")
    assert page.run("document.querySelector('.answer details .text').textContent") == "I see"
    assert page.run("document.querySelector('.answer > .text').textContent") == TEXT
    assert count(page, ".answer details .token") == 2
    assert "think: safety" in page.text(".verdict")


def test_the_next_question_carries_the_turns_before_it(page, server):
    ask(page, "refuse this")
    ask(page, "and now?")
    assert server.chats[1]["messages"] == [
        {"role": "user", "content": "refuse this"},
        {"role": "assistant", "content": "Locks have pins; a" + POLICY["refusal"]},
        {"role": "user", "content": "and now?"},
    ]
    assert server.chats[1]["stream"] is True and server.chats[1]["so8t"] == {"trace": True}
    page.click("#clear")
    ask(page, "again")
    assert len(server.chats[2]["messages"]) == 1 and count(page, ".answer") == 1


def test_an_answer_that_breaks_off_or_is_stopped_says_so(page, server):
    ask(page, "break off")
    assert page.text(".error") == "The answer ended early."
    page.click("#clear")
    page.type("#prompt", "slow")
    page.press(Keys.ENTER)
    page.wait("document.querySelector('.answer > .text')?.textContent === 'Locks'")
    page.click("#stop")
    assert page.text(".error") == "Stopped by you."
    server.go_on.set()


# ---- escalations


@pytest.mark.parametrize("action", ["allow", "deny"])
def test_an_escalation_is_held_listed_and_decided_by_a_named_reviewer(page, server, action):
    escalate(page)
    page.wait("document.querySelector('.answer h3').textContent.startsWith('Held')")
    assert "waits for a reviewer" in page.text("#status")
    assert page.run("document.title") == "(1) SO8T" and page.text("#escalations-note") == "1 waiting for a reviewer"
    entry = page.text(".entry")
    assert TEXT in entry and "authority: escalate 0.913" in entry
    assert re.match(r"please escalate this\nesc-1, [12]:\d\d left\n", entry)

    page.click(f"[data-action={action}]")
    assert page.text(".entry [role=alert]") == "Enter the reviewer's name first."
    page.wait("document.activeElement.id === 'reviewer'")
    assert server.decisions == []

    page.type("#reviewer", "Ada Ω")
    page.type(".entry input", "as agreed")
    page.click(f"[data-action={action}]")
    page.wait("!document.querySelector('[aria-busy]')")
    assert server.decisions == [("esc-1", {"action": action, "reviewer": "Ada Ω", "comment": "as agreed"})]
    outcome = {"allow": "allowed", "deny": "denied"}[action]
    page.wait(f"document.querySelector('.entry .state').innerText === 'esc-1, {outcome} by Ada Ω'")
    words = " ".join(page.text(".verdict").split())
    assert f"Escalation esc-1: {outcome} by Ada Ω" in words
    if action == "allow":
        assert "! escalate: released by a reviewer" in words
        assert page.run("document.querySelector('.answer > .text').textContent") == TEXT
    else:
        assert "! escalate: denied by a reviewer" in words
        assert page.text(".stopped").split("\n") == ["Escalated", POLICY["escalation"]]
    page.wait("document.title === 'SO8T'")


def test_a_reviewer_proves_the_name_with_a_key(page, server):
    server.reviewer_key = "a key"
    server.add_escalation("esc-1", "p", "a")
    page.type("#reviewer", "Ada")
    page.click("[data-action=allow]")
    page.wait("document.querySelector('.entry [role=alert]').textContent.includes('403')")
    page.type("#reviewer-key", "a \u03a9")
    page.click("[data-action=allow]")
    page.wait("document.querySelector('.entry [role=alert]').textContent.includes('characters')")
    page.run("document.getElementById('reviewer-key').value = 'akey'")
    server.reviewer_key = "akey"
    page.click("[data-action=allow]")
    page.wait("document.querySelector('.entry .state').innerText === 'esc-1, allowed by Ada'")
    assert server.decisions == [("esc-1", {"action": "allow", "reviewer": "Ada"})]


def test_a_poll_keeps_what_is_being_typed(page, server):
    server.add_escalation("esc-1", "p", "a")
    page.type(".entry input", "half a com")
    server.add_escalation("esc-2", "p", "a")
    page.wait("document.querySelectorAll('.entry').length === 2")
    page.insert("ment")
    assert page.run("document.querySelector('.entry input').value") == "half a comment"
    del server.escalations["esc-1"]
    page.wait("document.querySelectorAll('.entry').length === 1")


def test_an_entry_that_somebody_else_decided_is_an_error_on_the_page(page, server):
    server.add_escalation("esc-1", "p", "a")
    server.taken = True
    page.type("#reviewer", "Ada")
    page.click("[data-action=allow]")
    assert page.text(".entry [role=alert]") == "The server answered 409: esc-1 was already decided"


# ---- states of the server


def test_a_server_with_a_key_is_asked_no_more_until_it_is_entered(page, server):
    page.wait("!!document.getElementById('mode').textContent")
    server.key = "secret"
    page.wait("!document.getElementById('notice').hidden")
    assert page.text("#notice") == "The server asks for an API key." and page.text("#mode") == "no access"
    page.wait("document.activeElement.id === 'key'")
    page.type("#key", "wrong")
    page.press(Keys.TAB)
    page.wait("document.getElementById('notice').textContent === 'The server does not accept this API key.'")
    page.run("document.getElementById('key').select()")
    page.type("#key", "secret")
    page.press(Keys.TAB)
    page.wait("document.getElementById('notice').hidden")
    assert page.run("sessionStorage.getItem('so8t-key')") == "secret"
    ask(page, "hello")
    assert count(page, ".verdict") == 1


def test_a_model_without_heads(page, server):
    server.info = {"heads": {}}
    refresh(page)
    page.wait("document.getElementById('policy').innerText.includes('This model has no heads')")
    assert page.text("#mode") == "no heads" and count(page, "#head option") == 1
    ask(page, "hello")
    assert page.text(".verdict") == "No verdict: this model has no heads."
    assert page.run("document.querySelector('.answer > .text').textContent") == TEXT


def test_what_each_head_reads_is_shown(page, server):
    shown = page.text("#policy-body")
    assert "spinor+; linear on the final norm; softmax, threshold; prompts by token\n" in shown
    assert (
        "attention on tap 3, tap 12 (rms), 512 tokens back; softmax, threshold; prompts by token, ema (alpha 0.25); "
        "asked where safety acts" in shown
    )
    assert f"more.heads.gguf {'cd' * 32}" in shown


def test_a_server_without_a_reviewer(page, server):
    server.info["policy"] = POLICY | {"escalation_wait": 0}
    server.wait = 0
    refresh(page)
    page.wait("document.getElementById('policy').innerText.includes('Review wait\\nnone')")
    page.wait("document.getElementById('escalations-note').textContent.endsWith('no reviewer is configured.')")


def test_a_server_without_an_audit_log(page, server):
    page.wait("document.querySelectorAll('.record').length")
    server.audit = None  # 404, before the page knows
    refresh(page)
    page.wait("!document.querySelectorAll('.record').length")
    server.info["audit"] = None
    refresh(page)
    page.wait("document.getElementById('audit-note').textContent === 'The server writes no audit log.'")
    assert page.run("document.getElementById('notice').hidden")


def test_an_audit_log_that_cannot_be_written_is_said(page, server):
    server.info["audit"] = server.info["audit"] | {"failed": True}
    refresh(page)
    page.wait("document.getElementById('audit-note').textContent.startsWith('The audit log cannot be written')")


def test_a_server_that_goes_away_and_comes_back(page, server):
    page.wait("!!document.getElementById('mode').textContent")
    server.unavailable = True
    page.wait("document.getElementById('notice').textContent === 'The server cannot be reached.'")
    assert page.text("#mode") == "not reachable" and page.run(
        "getComputedStyle(document.getElementById('mode')).color"
    ) == (page.run("getComputedStyle(document.getElementById('notice')).borderLeftColor"))
    server.unavailable = False
    page.wait("document.getElementById('notice').hidden")
    assert page.text("#mode") == "enforce"


def test_what_the_user_said_does_not_look_like_what_was_withheld(page):
    ask(page, "refuse this")
    styles = "(s => getComputedStyle(document.querySelector(s)).borderStyle)"
    assert "dashed" in page.run(f"{styles}('.withheld')") and "dashed" not in page.run(f"{styles}('.user')")


# ---- a router


def test_a_router_offers_its_models(page, server):
    other = server.info | {"policy": POLICY | {"mode": "monitor"}, "audit": None}
    server.models = {
        "a-cold": {"status": "unloaded", "so8t": None},
        "b-warm": {"status": "loaded", "so8t": server.info},
        "c-other": {"status": "loaded", "so8t": other},
    }
    refresh(page)
    page.wait("!document.getElementById('models').hidden")
    assert page.run("[...document.getElementById('models').options].map((o) => o.value)") == [
        "b-warm",
        "c-other",
        "a-cold",
    ]
    assert page.text("#mode") == "enforce"
    page.wait("document.querySelectorAll('.record').length")
    assert "model=b-warm" in server.asked_audits[-1]
    Select(page.point("#models")).select_by_value("c-other")
    page.wait("document.getElementById('mode').textContent === 'monitor'")
    ask(page, "hello")
    assert server.chats[-1]["model"] == "c-other"
    Select(page.point("#models")).select_by_value("a-cold")
    page.wait("document.getElementById('mode').textContent === 'unloaded'")
    assert "not loaded (unloaded)" in page.text("#policy-body")


def test_held_answers_of_a_router_name_their_models(page, server):
    server.models = {"b-warm": {"status": "loaded", "so8t": server.info}}
    server.silent = ["d-hangs"]
    server.add_escalation("esc-1", "p", "a")["model"] = "b-warm"
    refresh(page)
    page.wait("document.querySelectorAll('.entry').length")
    assert page.text(".entry .state").startswith("b-warm, esc-1, ")
    page.wait("document.getElementById('escalations-note').textContent.endsWith('Not heard from: d-hangs.')")


# ---- hostile and long text


def test_hostile_strings_in_every_field_stay_text(page, server):
    server.suffix = HOSTILE
    refresh(page)
    page.wait("document.getElementById('model').textContent.includes('</script>')")
    ask(page, f"hello {HOSTILE}")
    ask(page, f"refuse {HOSTILE}")
    page.type("#prompt", f"escalate {HOSTILE}")
    page.press(Keys.ENTER)
    page.wait("document.querySelectorAll('.entry').length")
    page.type("#reviewer", f"Mallory {HOSTILE}")
    page.click("[data-action=allow]")
    page.wait("document.querySelectorAll('.verdict').length === 3")
    page.point(".answer .token")
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    server.taken = True
    server.add_escalation("esc-2", "p", "a")
    page.wait("document.querySelectorAll('.entry:not(.done)').length")
    page.click(".entry:not(.done) [data-action=deny]")
    page.wait("document.querySelector('.entry:not(.done) [role=alert]').textContent")
    server.key = "secret"  # an error of the server in the notice
    shown = HOSTILE.translate(NO_BIDI)
    for where in ("#model", "#policy-body", ".answer > .text", ".user", ".verdict", ".stopped", ".entry", ".entry h3",
                  ".entry:not(.done) [role=alert]", ".record", "#audit-note", "#tip", "#head"):  # fmt: skip
        assert shown in page.run(f"document.querySelector({where!r}).textContent"), where
    assert page.run("window.hacked") is None
    assert count(page, "img, svg, #injected, iframe, script:not(body > script)") == 0
    assert count(page, "script") == 1
    for width in (380, 1400):
        page.size(width, 800)
        assert page.run(OVERFLOW) <= 0
    assert server.decisions[0][1]["reviewer"] == f"Mallory {HOSTILE}"


def test_very_long_texts_and_names_stay_inside(page, server):
    long = "w" * 20_000
    server.info["model"] = server.info["model"] | {"name": long[:300], "path": long[:300]}
    server.info["heads"] = HEADS | {long[:200]: HEADS["safety"]}
    server.add_escalation("esc-1", long, long)
    page.wait("document.querySelectorAll('.entry').length")
    ask(page, long)
    for width in (380, 1400):
        page.size(width, 800)
        for part in ("chat", "escalations", "policy", "audit"):
            page.run(f"document.querySelector('[data-show={part}]').click()")
            wide = page.run(f"(e => e.scrollWidth - e.clientWidth)(document.getElementById('{part}'))")
            assert (page.run(OVERFLOW), wide) <= (0, 0), (width, part)


# ---- the file


def test_the_page_needs_nothing_from_elsewhere():
    source = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|src=", source.replace("// ", ""))


def test_a_picture_of_the_page(browser, tmp_path):
    screenshot.main([str(tmp_path / "page.png")])
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
