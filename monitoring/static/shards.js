// The table of shards: state as a shape and a word, never by colour alone.

const SHAPES = { serving: "●", loading: "◐", empty: "○", leaving: "◇", suspected: "▲" };

const at = (id) => document.getElementById(id);

export class Shards {
  /** onSelect(id or null): show what it holds. */
  constructor(onSelect) {
    this.onSelect = onSelect;
    this.selected = null;
    this.rows = new Map();
    at("show-all").addEventListener("click", () => {
      at("heat-title").focus();
      this.#select(null);
    });
  }

  show(shards, wanted, holdings) {
    at("shards").hidden = !shards.length;
    at("shards-empty").hidden = shards.length > 0;
    at("shards-empty").textContent = `No shard is there${wanted ? `; ${wanted} are wanted` : ""}.`;
    for (const shard of shards) this.#row(shard, holdings);
    const there = new Set(shards.map((shard) => shard.id));
    for (const [id, row] of this.rows) {
      if (there.has(id)) continue;
      row.element.remove();
      this.rows.delete(id);
    }
    if (this.selected && !there.has(this.selected)) this.#select(null);
  }

  #row(shard, holdings) {
    const row = this.rows.get(shard.id) ?? this.#newRow(shard.id);
    const state = shard.loading ? `loading ${shard.loading}` : shard.state;
    row.element.dataset.state = shard.state;
    const texts = [
      null, `${SHAPES[shard.state] ?? "?"} ${state}`, describe(holdings, shard.id),
      `${shard.used} of ${shard.slots}`, rate(shard.rows_per_s),
      shard.busy_ratio === null ? "–" : `${Math.round(100 * shard.busy_ratio)}% of the time`,
      `${size(shard.resident_bytes)}, experts ${size(shard.weight_bytes)}`, shard.host,
    ];
    texts.forEach((text, column) => text !== null && row.cells[column].textContent !== text && (row.cells[column].textContent = text));
  }

  #newRow(id) {
    const element = at("shards").tBodies[0].insertRow();
    const cells = [...at("shards").tHead.rows[0].cells].map((head) => {
      const cell = element.insertCell();
      cell.dataset.label = head.textContent;
      return cell;
    });
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: id, title: "Show only its experts on the map" });
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => this.#select(this.selected === id ? null : id));
    cells[0].append(button);
    this.rows.set(id, { element, cells, button });
    return this.rows.get(id);
  }

  #select(id) {
    this.selected = id;
    for (const [other, { button }] of this.rows) button.setAttribute("aria-pressed", String(other === id));
    at("show-all").hidden = id === null;
    this.onSelect(id);
  }
}

/** Ranges of experts if all layers have the same, else how many a layer. */
export function describe(holdings, id) {
  const held = holdings?.shards.get(id);
  if (!held) return "–";
  if (!held.size) return "nothing";
  const layers = Array.from({ length: holdings.layers }, () => []);
  for (const index of held) layers[Math.floor(index / holdings.experts)].push(index % holdings.experts);
  const texts = new Set(layers.map((experts) => ranges(experts)));
  if (texts.size === 1) return `${[...texts][0]} of every layer`;
  const counts = layers.map((experts) => experts.length);
  const [least, most] = [Math.min(...counts), Math.max(...counts)];
  return `${least === most ? least : `${least} to ${most}`} experts of each layer`;
}

function ranges(experts) {
  const runs = [];
  for (const expert of experts.sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last && last[1] === expert - 1) last[1] = expert;
    else runs.push([expert, expert]);
  }
  return runs.map(([from, to]) => (from === to ? from : `${from}–${to}`)).join(", ") || "none";
}

export function rate(value) {
  if (value === null || value === undefined) return "–";
  return value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(1);
}

function size(count) {
  return count >= 2 ** 30 ? `${(count / 2 ** 30).toFixed(1)} GiB` : `${Math.round(count / 2 ** 20)} MiB`;
}
