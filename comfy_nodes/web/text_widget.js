// The text that a node shows on itself. A module for the other files here; it registers nothing.

const WIDGET = "luna_text";

// The widget is display only: `options.serialize` keeps it out of the prompt, `serialize` out of the saved workflow.
// It comes after all real widgets, because saved values are positional.
export function textWidget(node) {
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
