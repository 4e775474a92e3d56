// Luna in the browser: shows a node's text output on the node, and Luna's notices as toasts.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { textWidget } from "./text_widget.js";

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
