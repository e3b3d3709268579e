// The figures at the top, and the word for the state of the whole.

import { rate } from "./shards.js";

const LEVELS = {
  good: ["✔", "Whole"], degraded: ["▲", "Degraded"], unavailable: ["✖", "Experts missing"], starting: ["◐", "Starting"],
};
const ALERTS = {
  degraded: "Every expert can be reached, but something is missing",
  unavailable: "Some experts cannot be reached",
  starting: "Starting",
};

const at = (id) => document.getElementById(id);

export function showTiles(state) {
  const behind = state.readers.filter((version) => version < state.table_version).length;
  const tiles = [
    ["Output", `${rate(state.output_per_s)} tokens/s`, `prompts ${rate(state.prompt_per_s)} tokens/s, of the last 5 s`],
    ["First token", seconds(state.ttft_p50_s), "median of the last minute"],
    ["Requests", `${state.running ?? "–"} running`, `${state.waiting ?? "–"} waiting`],
    ["Max/mean", state.imbalance === null ? "–" : state.imbalance.toFixed(2), "of shards, mean over layers; 1 is even"],
    ["Replicas", `${state.redundancy} of ${state.redundancy_target ?? "–"}`, "of the least held expert"],
    ["Table", `version ${state.table_version}`, behind ? `${behind} attention replicas behind` : "used by all attention replicas"],
    ["Moves", state.moves_left ? `${state.moves_left} left` : "none", "experts still to be loaded"],
  ];
  const list = at("tiles");
  tiles.forEach(([name, value, note], index) => {
    const tile = list.children[index] ?? list.appendChild(newTile(name));
    tile.children[1].textContent = value;
    tile.children[2].textContent = note;
  });
}

export function showCondition({ level, problems, scaling }) {
  const [shape, word] = LEVELS[level];
  setText(at("level"), `${shape} ${word}`);
  document.body.dataset.level = level;
  const lines = [...problems, ...(level === "good" ? [] : scaling.map((line) => `Scaling, ${line}`))];
  at("alert").hidden = level === "good";
  if (level === "good") return;
  setText(at("alert-title"), `${shape} ${ALERTS[level]}`);
  const list = at("alert-list");
  if (list.dataset.lines === lines.join("\n")) return; // it is read aloud when it changes
  list.dataset.lines = lines.join("\n");
  list.replaceChildren(...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value >= 1 ? `${value.toFixed(2)} s` : `${Math.round(1000 * value)} ms`;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function newTile(name) {
  const tile = document.createElement("div");
  for (const [tag, text] of [["dt", name], ["dd", ""], ["dd", ""]]) {
    tile.append(Object.assign(document.createElement(tag), { textContent: text }));
  }
  return tile;
}
