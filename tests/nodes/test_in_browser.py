"""Luna's nodes in a real browser: what is shown, what is sent, and the example workflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.nodes.browser import find_chromium, running_browser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.nodes.browser import Page
    from tests.nodes.processes import ComfyServer

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine"),
]
EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"
WIDGETS = {
    "LunaYAMLWildcard": (
        "prompt_template",
        "seed",
        None,
        "yaml_directory",
        "txt_wildcard_directory",
        "negative_template",
        "missing",
    ),
    "LunaPromptCraft": (
        "template",
        "seed",
        None,
        "wildcards_path",
        "enable_constraints",
        "enable_modifiers",
        "enable_expanders",
        "enable_lora_links",
        "add_trigger_words",
        "max_loras",
        "base_model",
        "missing",
    ),
}
"""The widgets in the order of a stored workflow; None is ComfyUI's own control behind a seed."""
TEMPLATE = "{red|blue} boat // no comment \\(x\\)"


@pytest.fixture(scope="module")
def page(comfy_server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    comfy_server.request("/settings", {"Comfy.TutorialCompleted": True})
    executable = find_chromium()
    assert executable is not None
    with running_browser(executable, tmp_path_factory.mktemp("profile")) as opened:
        opened.open(f"http://127.0.0.1:{comfy_server.port}/")
        opened.wait_for("!!(window.app?.extensionManager && window.LiteGraph?.registered_node_types?.LunaYAMLWildcard)")
        yield opened


def make_graph(page: Page) -> None:
    """Put a wildcard node, a probe and a status node on an empty canvas."""
    page.evaluate(f"""(() => {{
        app.graph.clear();
        const wild = LiteGraph.createNode("LunaYAMLWildcard");
        const probe = LiteGraph.createNode("LunaTestProbe");
        const status = LiteGraph.createNode("LunaDaemonStatus");
        for (const node of [wild, probe, status]) app.graph.add(node);
        wild.connect(0, probe, 0);
        const set = (node, name, value) => {{ node.widgets.find((w) => w.name === name).value = value; }};
        set(wild, "prompt_template", {json.dumps(TEMPLATE)});
        set(wild, "seed", 4);
        set(wild, "control_after_generate", "fixed");
        set(probe, "name", "browser");
    }})()""")


def widget_of(kind: str) -> str:
    return f"app.graph.nodes.find((n) => n.comfyClass === '{kind}').widgets?.find((w) => w.name === 'luna_text')"


def test_the_text_appears_on_the_node_and_stays_out_of_prompt_and_file(page: Page, comfy_server: ComfyServer) -> None:
    make_graph(page)
    sent: dict[str, Any] = json.loads(page.evaluate("app.graphToPrompt().then((p) => JSON.stringify(p.output))"))
    wild = next(entry for entry in sent.values() if entry["class_type"] == "LunaYAMLWildcard")
    assert wild["inputs"]["prompt_template"] == TEMPLATE
    page.evaluate("void app.queuePrompt(0, 1)")
    shown = page.wait_for(f"{widget_of('LunaYAMLWildcard')}?.value")
    assert shown == json.loads(comfy_server.output("browser.json").read_text())
    assert shown in {r"red boat // no comment \(x\)", r"blue boat // no comment \(x\)"}
    assert "is ready" in page.wait_for(f"{widget_of('LunaDaemonStatus')}?.value")
    again: dict[str, Any] = json.loads(page.evaluate("app.graphToPrompt().then((p) => JSON.stringify(p))"))
    assert again["output"] == sent
    saved = next(entry for entry in again["workflow"]["nodes"] if entry["type"] == "LunaYAMLWildcard")
    assert len(saved["widgets_values"]) == 7
    size = page.evaluate("(() => { const n = app.graph.nodes[0]; return [n.size[1], n.computeSize()[1]]; })()")
    assert size[0] >= size[1]  # the node has grown around the text


def test_a_notice_becomes_a_toast(page: Page) -> None:
    page.evaluate("""(() => {
        const wild = app.graph.nodes.find((n) => n.comfyClass === "LunaYAMLWildcard");
        wild.widgets.find((w) => w.name === "prompt_template").value = "a {nobody_has_this}";
    })()""")
    page.evaluate("void app.queuePrompt(0, 1)")
    toast = page.wait_for("document.querySelector('.p-toast-message')?.innerText")
    assert "nobody_has_this" in toast


def click(page: Page, kind: str, label: str) -> None:
    """Press a button of a node as a person does: on the canvas, where it is drawn."""
    place = json.loads(
        page.evaluate(f"""(() => {{
        const node = app.graph.nodes.find((n) => n.comfyClass === "{kind}");
        app.canvas.centerOnNode(node);
        const widget = node.widgets.find((w) => w.name === "{label}");
        const spot = [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10];
        const [x, y] = app.canvas.ds.convertOffsetToCanvas(spot);
        const box = app.canvas.canvas.getBoundingClientRect();
        return JSON.stringify([x + box.left, y + box.top]);
    }})()""")
    )
    for kind_of_event in ("mousePressed", "mouseReleased"):
        page.send("Input.dispatchMouseEvent", type=kind_of_event, x=place[0], y=place[1], button="left", clickCount=1)


def test_the_preview_button_shows_samples_without_queueing(page: Page, comfy_server: ComfyServer) -> None:
    make_graph(page)
    before = comfy_server.request("/history")
    node = 'app.graph.nodes.find((n) => n.comfyClass === "LunaYAMLWildcard")'
    page.wait_for(f'{node}.widgets.find((w) => w.name === "Preview samples").last_y')
    click(page, "LunaYAMLWildcard", "Preview samples")
    shown = page.wait_for(f"{widget_of('LunaYAMLWildcard')}?.value").splitlines()
    assert len(shown) == 6
    assert shown[0].startswith("4: ")
    assert shown[-1] == "2 combinations"
    assert {line.split(": ", 1)[1] for line in shown[:-1]} <= {
        f"{colour} boat // no comment \\(x\\)" for colour in ("red", "blue")
    }
    assert comfy_server.request("/history") == before
    sent: dict[str, Any] = json.loads(page.evaluate("app.graphToPrompt().then((p) => JSON.stringify(p))"))
    saved = next(entry for entry in sent["workflow"]["nodes"] if entry["type"] == "LunaYAMLWildcard")
    assert len(saved["widgets_values"]) == 7
    wild = next(entry for entry in sent["output"].values() if entry["class_type"] == "LunaYAMLWildcard")
    assert set(wild["inputs"]) == {
        "prompt_template", "seed", "yaml_directory", "txt_wildcard_directory", "negative_template", "missing",
    }  # fmt: skip


def test_a_reference_is_picked_from_the_library_and_completed_while_typing(page: Page) -> None:
    page.evaluate("""(() => {
        const node = app.graph.nodes.find((n) => n.comfyClass === "LunaYAMLWildcard");
        const field = node.widgets.find((w) => w.name === "prompt_template");
        field.value = "a ";
        (field.inputEl ?? field.element).setSelectionRange(2, 2);
    })()""")
    click(page, "LunaYAMLWildcard", "Insert from the library")
    page.wait_for("document.querySelectorAll('.luna-library .luna-row').length > 5")
    page.send("Input.insertText", text="weather sky")
    first = "document.querySelector('.luna-library .luna-row').firstChild.textContent"
    page.wait_for(f"/^.?weather:sky/.test({first})")
    page.evaluate(
        "document.querySelector('.luna-library .luna-row').dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))"
    )
    node = 'app.graph.nodes.find((n) => n.comfyClass === "LunaYAMLWildcard")'
    value = f'{node}.widgets.find((w) => w.name === "prompt_template").value'
    assert page.wait_for(value) == "a {weather:sky}"
    page.send("Input.insertText", text=" {weather:se")
    page.wait_for("!!document.querySelector('.luna-list .luna-row')")
    page.send("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert page.wait_for(f"!document.querySelector('.luna-list') && {value}") == "a {weather:sky} {weather:season}"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_example_workflow_loads_whole(page: Page, comfy_server: ComfyServer, path: Path) -> None:
    served = comfy_server.request(f"/api/workflow_templates/luna-pack/{path.name}")
    assert served == json.loads(path.read_text())
    page.evaluate(f"app.loadGraphData({json.dumps(served)})")
    page.wait_for(f"app.graph.nodes.length === {len(served['nodes'])}")
    sent: dict[str, Any] = json.loads(page.evaluate("app.graphToPrompt().then((p) => JSON.stringify(p.output))"))
    assert {entry["class_type"] for entry in sent.values()} == {node["type"] for node in served["nodes"]}
    kinds = WIDGETS.keys() & {node["type"] for node in served["nodes"]}
    assert kinds
    for kind in kinds:
        inputs = next(entry for entry in sent.values() if entry["class_type"] == kind)["inputs"]
        stored = next(node for node in served["nodes"] if node["type"] == kind)["widgets_values"]
        for name, value in zip(WIDGETS[kind], stored, strict=True):
            if name is not None:
                assert inputs[name] == value
    info = comfy_server.request("/object_info")
    for entry in sent.values():
        assert entry["inputs"].keys() >= info[entry["class_type"]]["input"].get("required", {}).keys()


def test_a_help_page_is_found_where_the_front_end_looks(comfy_server: ComfyServer, page: Page) -> None:
    text = page.evaluate("fetch('/extensions/luna-pack/docs/LunaYAMLWildcard.md').then((r) => r.text())")
    assert text.startswith("# Luna YAML Wildcard")


def test_the_console_holds_no_complaint_of_luna(page: Page) -> None:
    assert not [line for line in page.console if "luna" in line.lower() and not line.startswith(("log:", "info:"))]
