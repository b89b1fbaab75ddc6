// One fader per block beside the block-weight text of "Open LoRA" and "Apply LoRA", and a menu of presets.
// Nothing depends on it: the text is the value, the faders only write it. What they do not understand they leave alone.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { formOf, readText, writeText } from "./block_text.mjs";

const NODES = new Set(["AtelierOpenLora", "AtelierApplyLora"]);
const WIDGET = "atelier_block_sliders";
const TEXT = "block_weights";
const HEIGHT_PX = 190;
const FORM_TITLES = { 17: "SD LoRA (17)", 26: "SD LoCon (26)", 12: "SDXL LoRA (12)", 20: "SDXL LoCon (20)" };
const COLOURS = { TE: "#8b63d6", IN: "#3b82d6", MID: "#d98c2b", OUT: "#2ba37a" };

function element(tag, style, attributes = {}) {
  const made = document.createElement(tag);
  Object.assign(made.style, style);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function option(select, value, label) {
  const made = element("option", { background: "var(--comfy-menu-bg)", color: "var(--input-text)" });
  made.value = value;
  made.textContent = label;
  select.append(made);
}

// Browsers draw a range in their own colours, dark or light by themselves; these follow the page's theme.
const STYLE = `
  .atelier-fader { appearance: none; writing-mode: vertical-lr; direction: rtl; width: 8px; margin: 0; flex: 1 1 auto;
    min-height: 0; border: 1px solid var(--border-color); border-radius: 5px; cursor: ns-resize;
    background: linear-gradient(to top, var(--fader) var(--filled), var(--comfy-input-bg) var(--filled)); }
  .atelier-fader::-webkit-slider-thumb { appearance: none; width: 14px; height: 7px; border-radius: 3px;
    background: var(--input-text); border: 1px solid var(--comfy-menu-bg); }
  .atelier-fader::-moz-range-thumb { width: 14px; height: 7px; border-radius: 3px; background: var(--input-text);
    border: 1px solid var(--comfy-menu-bg); }
  .atelier-fader:disabled { cursor: default; }
`;

const FIELD = {
  font: "11px sans-serif",
  color: "var(--input-text)",
  background: "var(--comfy-input-bg)",
  border: "1px solid var(--border-color)",
  borderRadius: "4px",
  padding: "2px 4px",
  minWidth: "0",
};

class Sliders {
  constructor(node, text, told) {
    this.node = node;
    this.text = text;
    this.forms = told.forms;
    this.presets = told.presets;
    this.problem = told.problem ?? "";
    this.length = "17";
    this.faders = [];
    this.root = element("div", {
      display: "flex", flexDirection: "column", gap: "4px", padding: "4px 6px", boxSizing: "border-box",
      font: "11px sans-serif", color: "var(--input-text)", overflow: "hidden",
    });
    const head = element("div", { display: "flex", gap: "4px", alignItems: "center" });
    this.formMenu = element("select", { ...FIELD, flex: "0 1 116px" }, { title: "Which file the faders are for" });
    for (const length of Object.keys(FORM_TITLES)) option(this.formMenu, length, FORM_TITLES[length]);
    this.presetMenu = element("select", { ...FIELD, flex: "1 1 120px" }, { title: "Presets for this kind of file" });
    this.note = element("span", { flex: "1 1 0", opacity: "0.75", whiteSpace: "nowrap", overflow: "hidden",
      textOverflow: "ellipsis", textAlign: "right" });
    head.append(this.formMenu, this.presetMenu, this.note);
    this.bank = element("div", { display: "flex", flex: "1 1 auto", gap: "1px", minHeight: "0" });
    const style = document.createElement("style");
    style.textContent = STYLE;
    this.root.append(style, head, this.bank);
    this.formMenu.onchange = () => this.show(this.formMenu.value);
    this.presetMenu.onchange = () => this.presetMenu.value && this.write(this.presetMenu.value + this.read().tail);
    this.root.addEventListener("pointerenter", () => this.sync());
    // The canvas behind must not be dragged or zoomed with a fader.
    for (const kind of ["pointerdown", "wheel", "keydown"]) {
      this.root.addEventListener(kind, (event) => event.stopPropagation());
    }
    this.show(this.length);
  }

  read() {
    return readText(String(this.text.value ?? ""), this.forms, this.presets, this.length);
  }

  write(value) {
    this.text.value = value;
    this.text.callback?.(value);
    app.graph?.setDirtyCanvas(true, false);
    this.sync();
  }

  /** Lays out the faders of a form; a row of numbers of another length decides the form itself. */
  show(length) {
    this.length = length;
    const shown = this.read();
    if (shown.kind === "numbers") this.length = shown.length;
    this.formMenu.value = this.length;
    this.presetMenu.replaceChildren();
    option(this.presetMenu, "", "preset ...");
    for (const [name, byLength] of Object.entries(this.presets)) {
      if (byLength[this.length]) option(this.presetMenu, name, name);
    }
    this.bank.replaceChildren();
    this.faders = this.forms[this.length].map((block, index) => this.fader(block, index));
    this.sync();
  }

  fader(block, index) {
    const kind = block.replace(/\d+$/, "");
    const column = element("div", { display: "flex", flexDirection: "column", alignItems: "center", flex: "1 1 0",
      minWidth: "0", gap: "1px" });
    const number = element("span", { font: "9px sans-serif", height: "11px" });
    const input = element("input", {},
      { type: "range", step: "0.05", class: "atelier-fader", "aria-label": `weight of ${block}` });
    input.style.setProperty("--fader", COLOURS[kind] ?? COLOURS.TE);
    const label = element("span", { font: "9px sans-serif", writingMode: "vertical-rl", transform: "rotate(180deg)",
      flex: "0 0 36px", height: "36px", minHeight: "0", marginTop: "3px", textAlign: "right", opacity: "0.85" });
    label.textContent = block;
    column.title = `${block}: double click switches between 0 and 1`;
    column.append(number, input, label);
    input.oninput = () => this.set(index, Number(input.value));
    column.ondblclick = () => this.set(index, this.read().values[index] === 0 ? 1 : 0);
    this.bank.append(column);
    return { number, input, label };
  }

  set(index, value) {
    const shown = this.read();
    const values = [...shown.values];
    values[index] = value;
    this.write(writeText(values, shown.tail));
  }

  /** Puts the faders where the text says. */
  sync() {
    const shown = this.read();
    if (shown.length !== this.length) return this.show(shown.length);
    const wired = this.node.inputs?.some((input) => input.widget?.name === TEXT && input.link != null);
    const low = Math.min(0, ...shown.values);
    const high = Math.max(1, ...shown.values);
    for (const [index, { number, input, label }] of this.faders.entries()) {
      const value = shown.values[index];
      const [least, most] = [Math.floor(low), Math.ceil(high)];
      Object.assign(input, { min: least, max: most, value, disabled: Boolean(wired) });
      input.style.setProperty("--filled", `${(100 * (value - least)) / (most - least)}%`);
      number.textContent = String(Math.round(value * 100) / 100).replace(/^(-?)0\./, "$1.");
      label.style.opacity = value === 0 ? "0.35" : "0.85";
    }
    this.bank.style.opacity = wired || shown.kind === "written" ? "0.4" : "1";
    this.presetMenu.disabled = Boolean(wired);
    this.presetMenu.value = shown.kind === "preset" && this.presets[shown.name]?.[this.length] ? shown.name : "";
    const words = { numbers: "", preset: "", written: "written by hand; a fader replaces it" }[shown.kind];
    this.note.textContent = wired ? "comes by wire" : this.problem || words || shown.tail.slice(1);
    this.note.title = this.note.textContent;
  }

  /** Chooses the form by the metadata of the file, where it says something. */
  async choose(name) {
    if (!name || this.read().kind === "numbers") return;
    try {
      const answer = await api.fetchApi(`/view_metadata/loras?filename=${encodeURIComponent(name)}`);
      const form = answer.ok ? formOf(await answer.json()) : undefined;
      if (form && form !== this.length) this.show(form);
    } catch (error) {
      console.debug("LoRA Atelier: no metadata of", name, error);
    }
  }
}

function chain(widget, after) {
  const before = widget.callback;
  widget.callback = function (...given) {
    const result = before?.apply(this, given);
    after(...given);
    return result;
  };
}

app.registerExtension({
  name: "lora_atelier.block_sliders",
  nodeCreated(node) {
    const type = node.constructor?.nodeData;
    const told = type?.input?.required?.[TEXT]?.[1]?.atelier_blocks;
    const text = node.widgets?.find((widget) => widget.name === TEXT);
    if (!NODES.has(node.comfyClass) || !told || !text) return;
    const sliders = new Sliders(node, text, told);
    const widget = node.addDOMWidget(WIDGET, "atelier_sliders", sliders.root, {
      serialize: false,
      hideOnZoom: true,
      getMinHeight: () => HEIGHT_PX,
      getMaxHeight: () => HEIGHT_PX,
    });
    widget.serialize = false;
    node.atelierSliders = sliders;
    chain(text, () => sliders.sync());
    const file = node.widgets.find((one) => one.name === "lora_name");
    if (file) {
      chain(file, (name) => sliders.choose(name));
      sliders.choose(file.value);
    }
    const wanted = node.computeSize();
    node.setSize([Math.max(node.size[0], 420), Math.max(node.size[1], wanted[1])]);
  },
  loadedGraphNode(node) {
    if (!node.atelierSliders) return;
    node.atelierSliders.show(node.atelierSliders.length);
    node.atelierSliders.choose(node.widgets.find((one) => one.name === "lora_name")?.value);
  },
});
