// Shows the text that a node of LoRA Atelier returns (reports, scorecards, tags) inside the node.
// Nothing depends on it: the same text is in the history, the log and the node's STRING output.
import { app } from "../../scripts/app.js";

const WIDGET = "atelier_report";

function textWidget(node) {
  const found = node.widgets?.find((widget) => widget.name === WIDGET);
  if (found) return found;
  const box = document.createElement("textarea");
  box.readOnly = true;
  box.spellcheck = false;
  Object.assign(box.style, {
    resize: "none",
    font: "11px/1.35 monospace",
    whiteSpace: "pre",
    color: "var(--input-text)",
    background: "var(--comfy-input-bg)",
    border: "1px solid var(--border-color)",
  });
  const widget = node.addDOMWidget(WIDGET, "atelier_text", box, {
    serialize: false,
    getMinHeight: () => 110,
    getValue: () => box.value,
    setValue: (value) => (box.value = value ?? ""),
  });
  widget.serialize = false;
  return widget;
}

app.registerExtension({
  name: "lora_atelier.report",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("Atelier") || !nodeData.output_node) return;
    const before = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      before?.apply(this, arguments);
      if (!output?.text?.length) return;
      textWidget(this).value = output.text.join("\n");
      const wanted = this.computeSize();
      this.setSize([Math.max(this.size[0], wanted[0]), Math.max(this.size[1], wanted[1])]);
      app.graph.setDirtyCanvas(true, false);
    };
  },
});
