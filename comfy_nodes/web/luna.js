// Luna in the browser: shows a node's text output on the node, and Luna's notices as toasts.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const SHOWS_TEXT = new Set([
  "LunaYAMLWildcard",
  "LunaYAMLWildcardBatch",
  "LunaWildcardBuilder",
  "LunaLoRARandomizer",
  "LunaYAMLWildcardExplorer",
  "LunaYAMLPathExplorer",
  "LunaPromptCraft",
  "LunaDaemonStatus",
]);
const WIDGET = "luna_text";

// The widget is display only: `options.serialize` keeps it out of the prompt, `serialize` out of the saved workflow.
// It comes after all real widgets, because saved values are positional.
function textWidget(node) {
  const existing = node.widgets?.find((widget) => widget.name === WIDGET);
  if (existing) return existing;
  const element = document.createElement("textarea");
  element.readOnly = true;
  element.rows = 6;
  element.className = "comfy-multiline-input";
  element.setAttribute("aria-label", "Result");
  const widget = node.addDOMWidget(WIDGET, "luna_text", element, {
    serialize: false,
    getMinHeight: () => 90,
    getValue: () => element.value,
    setValue: (value) => {
      element.value = value ?? "";
    },
  });
  widget.serialize = false;
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  return widget;
}

app.registerExtension({
  name: "luna.text",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!SHOWS_TEXT.has(nodeData.name)) return;
    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (message) {
      onExecuted?.apply(this, arguments);
      if (message?.text) textWidget(this).value = message.text.join("\n\n");
      this.setDirtyCanvas?.(true, true);
    };
  },

  setup() {
    api.addEventListener("luna.notice", (event) => {
      app.extensionManager.toast.add({
        severity: "warn",
        summary: "Luna",
        detail: event.detail.message,
        life: 10000,
      });
    });
  },
});
