// Wildcard nodes in the browser: samples without queueing, completions, references to insert from the library.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { textWidget } from "./text_widget.js";

// Node id -> its template widgets by the name of the part they are, and what the preview must know besides.
const NODES = {
  LunaYAMLWildcard: { parts: { "": "prompt_template", negative: "negative_template" } },
  LunaYAMLWildcardBatch: { parts: { "": "prompt_template" } },
  LunaWildcardBuilder: { parts: { "": "prompt_template", prefix: "prefix", suffix: "suffix" } },
  LunaPromptCraft: { parts: { "": "template" }, rules: true },
};
const FOLDERS = ["yaml_directory", "txt_wildcard_directory", "wildcards_path"];
const SAMPLES = 5;
const PAUSE_MS = 120;

async function ask(path, payload) {
  const response = await api.fetchApi(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(payload),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(`${answer.error.code}: ${answer.error.message}`);
  return answer;
}

const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);
const isLinked = (node, name) => node.inputs?.some((input) => input.name === name && input.link != null);

function asText(answer) {
  const lines = answer.samples.map(({ seed, parts }) => {
    const others = Object.entries(parts).filter(([name, text]) => name && text);
    return [`${seed}: ${parts[""]}`, ...others.map(([name, text]) => `  ${name}: ${text}`)].join("\n");
  });
  if (answer.combinations !== null) lines.push(`${answer.combinations} combinations`);
  return [...lines, ...answer.problems].join("\n");
}

async function preview(node, spec) {
  const shown = textWidget(node);
  const parts = {};
  for (const [part, name] of Object.entries(spec.parts)) {
    if (isLinked(node, name)) {
      shown.value = `${name} comes from another node: queue the prompt to see it.`;
      return;
    }
    parts[part] = widgetOf(node, name)?.value ?? "";
  }
  if (FOLDERS.some((name) => widgetOf(node, name)?.value?.trim())) {
    shown.value = "The preview reads the usual wildcard folders only: queue the prompt to see a folder of your own.";
    return;
  }
  try {
    const seed = String(widgetOf(node, "seed")?.value ?? 0);
    const answer = await ask("/luna/wildcards/preview", { parts, seed, count: SAMPLES, rules: Boolean(spec.rules) });
    shown.value = asText(answer);
  } catch (error) {
    shown.value = String(error.message);
  }
  node.setDirtyCanvas?.(true, true);
}

function button(node, label, action) {
  const widget = node.addWidget("button", label, null, action, { serialize: false });
  widget.serialize = false;
  return widget;
}

// A list under a text field or in a dialog; the rows are text, never markup.
function fillList(list, rows, take) {
  list.replaceChildren(
    ...rows.map(({ text, detail, value }, index) => {
      const row = document.createElement("div");
      row.className = "luna-row";
      row.style.cssText = "display:flex;justify-content:space-between;gap:1em;padding:2px 8px;cursor:pointer";
      const name = document.createElement("span");
      name.textContent = text;
      const note = document.createElement("span");
      note.textContent = detail;
      note.style.opacity = "0.6";
      row.append(name, note);
      row.addEventListener("mousedown", (event) => {
        event.preventDefault(); // the field keeps the focus
        take(value, index);
      });
      return row;
    }),
  );
}

function makeList() {
  const list = document.createElement("div");
  list.className = "luna-list";
  list.style.cssText =
    "position:fixed;z-index:10000;max-height:14em;overflow:auto;min-width:18em;font:12px monospace;" +
    "background:var(--comfy-menu-bg,#222);color:var(--input-text,#ddd);border:1px solid var(--border-color,#555)";
  return list;
}

function insert(field, text, start, end) {
  field.focus();
  field.setRangeText(text, start, end, "end");
  field.dispatchEvent(new Event("input", { bubbles: true }));
}

// JavaScript counts UTF-16 units, the engine characters.
const characters = (text) => [...text].length;
const units = (text, count) => [...text].slice(0, count).join("").length;

function addCompletion(field) {
  let list = null;
  let timer = 0;
  let asked = 0;
  let current = 0;
  let rows = [];

  const close = () => {
    asked += 1;
    list?.remove();
    list = null;
  };
  const take = (one) => {
    const text = field.value;
    close();
    insert(field, one.text, units(text, one.start), units(text, one.end));
  };
  const mark = () =>
    [...(list?.children ?? [])].forEach((row, index) => {
      row.style.background = index === current ? "var(--p-primary-color,#36c)" : "";
      if (index === current) row.scrollIntoView({ block: "nearest" });
    });
  const show = () => {
    const box = field.getBoundingClientRect();
    list ??= document.body.appendChild(makeList());
    list.style.left = `${box.left}px`;
    list.style.top = `${box.bottom + 2}px`;
    fillList(list, rows.map((one) => ({ text: one.text, detail: one.detail || one.kind, value: one })), take);
    mark();
  };

  field.addEventListener("input", (event) => {
    clearTimeout(timer);
    if (!event.isTrusted) return close(); // what a completion wrote asks for no other
    const number = (asked += 1);
    timer = setTimeout(async () => {
      const before = field.value.slice(0, field.selectionStart);
      if (!/[{_][^{}\n]*$/.test(before)) return close();
      try {
        const answer = await ask("/luna/wildcards/complete", { text: field.value, cursor: characters(before) });
        if (number !== asked || document.activeElement !== field) return;
        rows = answer.completions.slice(0, 12);
        current = -1;
        if (rows.length) show();
        else close();
      } catch (error) {
        console.warn(`luna: no completions: ${error.message}`);
      }
    }, PAUSE_MS);
  });
  field.addEventListener("keydown", (event) => {
    if (!list) return;
    const moves = { ArrowDown: 1, ArrowUp: -1 };
    if (event.key in moves) {
      current = (current + moves[event.key] + rows.length) % rows.length;
      mark();
    } else if (event.key === "Tab" || (event.key === "Enter" && current >= 0)) {
      take(rows[Math.max(current, 0)]);
    } else if (event.key === "Escape") {
      close();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  });
  field.addEventListener("blur", close);
}

function openLibrary(field) {
  const panel = document.createElement("dialog");
  panel.className = "luna-library";
  panel.style.cssText =
    "width:32em;font:12px monospace;background:var(--comfy-menu-bg,#222);color:var(--input-text,#ddd);" +
    "border:1px solid var(--border-color,#555)";
  const words = document.createElement("input");
  words.placeholder = "find in the wildcard library";
  words.style.cssText = "width:100%;box-sizing:border-box;margin-bottom:6px";
  const list = document.createElement("div");
  list.style.cssText = "height:22em;overflow:auto";
  panel.append(words, list);

  let asked = 0;
  const place = field.selectionStart ?? field.value.length;
  const take = (reference) => {
    panel.close();
    insert(field, reference, place, place);
  };
  const refresh = async () => {
    const number = (asked += 1);
    try {
      const answer = await ask("/luna/wildcards/find", { words: words.value });
      if (number !== asked) return;
      fillList(
        list,
        answer.found.map((one) => ({ text: one.address, detail: `${one.items} items`, value: one.reference })),
        take,
      );
    } catch (error) {
      list.textContent = error.message;
    }
  };
  words.addEventListener("input", refresh);
  panel.addEventListener("keydown", (event) => event.stopPropagation());
  panel.addEventListener("close", () => panel.remove());
  panel.addEventListener("click", (event) => {
    if (event.target === panel) panel.close();
  });
  document.body.append(panel);
  panel.showModal();
  refresh();
}

app.registerExtension({
  name: "luna.wildcards",

  nodeCreated(node) {
    const spec = NODES[node.comfyClass];
    if (!spec) return;
    for (const name of Object.values(spec.parts)) {
      const field = widgetOf(node, name)?.inputEl ?? widgetOf(node, name)?.element;
      if (field instanceof HTMLTextAreaElement) addCompletion(field);
    }
    const main = widgetOf(node, spec.parts[""]);
    const field = main?.inputEl ?? main?.element;
    button(node, "Preview samples", () => preview(node, spec));
    if (field instanceof HTMLTextAreaElement) button(node, "Insert from the library", () => openLibrary(field));
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  },
});
