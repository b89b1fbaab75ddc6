// The block-weight text as the sliders read and write it. Pure functions: no page, no server.
// The text itself is all that counts: what is not understood here is left as it is written.

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/;
const IDENTITY = new Set(["", "ALL", "LC-ALL"]);

/** The vector in front, and the items behind it (":lbwe=...", ":step=5-10"). */
export function splitText(text) {
  const trimmed = text.trim();
  if (/^(%|(in|mid|out|base|te)\s*=)/i.test(trimmed)) return { vector: trimmed, tail: "" };
  const named = /^(lbw|w)\s*=/i.exec(trimmed);
  const body = named ? trimmed.slice(named[0].length) : trimmed;
  if (!named && /^(lbwe|start|stop|step|x)\s*=/i.test(body)) return { vector: "", tail: `:${body}` };
  const colon = body.indexOf(":");
  return colon < 0 ? { vector: body.trim(), tail: "" } : { vector: body.slice(0, colon).trim(), tail: body.slice(colon) };
}

/**
 * What the sliders show for a text.
 * @param {string} text the widget's value
 * @param {Record<string, string[]>} forms blocks by vector length, "17" and so on
 * @param {Record<string, Record<string, string>>} presets numbers by name and length
 * @param {string} length the form that is shown
 * @returns {{kind: "numbers"|"preset"|"written", length: string, values: number[], name: string, tail: string}}
 */
export function readText(text, forms, presets, length) {
  const { vector, tail } = splitText(text);
  const ones = (size) => Array(forms[size].length).fill(1);
  if (IDENTITY.has(vector.toUpperCase())) {
    return { kind: "preset", length, values: ones(length), name: "ALL", tail };
  }
  const words = vector.split(/[\s,]+/).filter(Boolean);
  if (words.length > 1 && words.every((word) => NUMBER.test(word))) {
    const size = String(words.length);
    if (forms[size]) return { kind: "numbers", length: size, values: words.map(Number), name: "", tail };
  }
  const name = findPreset(vector, presets);
  const numbers = name && presets[name][length]?.split(",");
  if (numbers?.every((word) => NUMBER.test(word))) {
    return { kind: "preset", length, values: numbers.map(Number), name, tail };
  }
  return { kind: "written", length, values: ones(length), name: name ?? "", tail };
}

/** A preset by its name, whatever the case; undefined where there is none or more than one. */
export function findPreset(name, presets) {
  if (Object.hasOwn(presets, name)) return name;
  const found = Object.keys(presets).filter((known) => known.toLowerCase() === name.toLowerCase());
  return found.length === 1 ? found[0] : undefined;
}

/** The text of a row of numbers, with the items that stood behind the old one. */
export function writeText(values, tail) {
  const row = values.map((value) => String(Math.round(value * 1000) / 1000)).join(",");
  const all = values.every((value) => value === 1);
  return `${all ? "ALL" : row}${tail}`;
}

/** The form of a LoRA file, by the metadata that trainers write; undefined where it says nothing. */
export function formOf(metadata) {
  const version = metadata?.ss_base_model_version ?? "";
  const architecture = metadata?.["modelspec.architecture"] ?? "";
  if (!version && !architecture) return undefined;
  const xl = version.startsWith("sdxl") || architecture.startsWith("stable-diffusion-xl");
  const whole = /conv_dim|conv_rank|"algo"/.test(metadata.ss_network_args ?? "");
  return xl ? (whole ? "20" : "12") : whole ? "26" : "17";
}
