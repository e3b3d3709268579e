// The heatmap: one pixel a cell in an ImageData, scaled up by the canvas; marks lie on a second one.

import { PALETTE, css } from "./colours.js";
import { bytes } from "./stream.js";

const LEAST_CELL = { width: 2, height: 4 };
const MOST_HEIGHT = 14;
const WANTED_HEIGHT = 320;
const PADDING = 10; // of the box around it, so that the focus can be seen
const NAMED_SHARDS = 8;

const at = (id) => document.getElementById(id);

export class Heatmap {
  constructor() {
    this.cells = at("heat-cells");
    this.marks = at("heat-marks");
    this.small = document.createElement("canvas");
    this.heat = this.holdings = this.shard = this.cursor = null;
    this.draws = 0; // and how long the last ones took, for tests
    this.drawMs = [];
    this.marks.addEventListener("pointermove", (event) => this.#point(event));
    this.marks.addEventListener("pointerdown", (event) => this.#point(event));
    this.marks.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#resize()).observe(at("heat-scroll"));
    this.#legend();
  }

  /** heat: of a state message, or null without traffic. */
  show(heat) {
    const isNew = heat && (heat.layers !== this.heat?.layers || heat.experts !== this.heat?.experts);
    this.heat = heat && { ...heat, cells: bytes(heat.cells) };
    at("heat").hidden = !heat;
    at("heat-empty").hidden = Boolean(heat);
    if (!heat) return void (at("heat-empty").textContent = "No traffic yet. The map fills with the first request.");
    if (isNew) this.#resize();
    this.#later();
  }

  /** holdings: as `readHoldings` gives it. */
  hold(holdings) {
    this.holdings = holdings;
    this.#later();
  }

  /** Show only what one shard holds; null for all. */
  select(shard) {
    this.shard = shard;
    this.#later();
  }

  #later() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (!this.heat || !this.width) return;
      const started = performance.now();
      this.#drawCells();
      this.#drawMarks();
      this.#read();
      this.draws += 1;
      this.drawMs = [...this.drawMs.slice(-99), performance.now() - started];
    });
  }

  #resize() {
    if (!this.heat) return;
    const { layers, experts } = this.heat;
    const room = at("heat-scroll").clientWidth - PADDING;
    if (room <= 0) return;
    this.cellHeight = Math.max(LEAST_CELL.height, Math.min(MOST_HEIGHT, Math.floor(WANTED_HEIGHT / layers)));
    this.width = Math.max(room, LEAST_CELL.width * experts);
    this.height = this.cellHeight * layers;
    for (const canvas of [this.cells, this.marks]) {
      canvas.width = Math.round(this.width * devicePixelRatio);
      canvas.height = Math.round(this.height * devicePixelRatio);
    }
    for (const box of [at("heat-stack"), this.cells, this.marks]) {
      box.style.width = `${this.width}px`;
      box.style.height = `${this.height}px`;
    }
    this.#later();
  }

  #drawCells() {
    const { layers, experts, cells, peak } = this.heat;
    Object.assign(this.small, { width: experts, height: layers });
    const context = this.small.getContext("2d");
    const image = context.createImageData(experts, layers);
    const pixels = new Uint32Array(image.data.buffer);
    const only = this.holdings?.shards.get(this.shard);
    for (let index = 0; index < cells.length; index++) {
      pixels[index] = only && !only.has(index) ? 0 : PALETTE[cells[index]];
    }
    context.putImageData(image, 0, 0);
    const shown = this.cells.getContext("2d");
    shown.imageSmoothingEnabled = false;
    shown.clearRect(0, 0, this.cells.width, this.cells.height);
    shown.drawImage(this.small, 0, 0, this.cells.width, this.cells.height);
    at("scale-text").textContent =
      `0 to ${peak.toFixed(1)} times the mean of its layer (the middle is ${(peak / 4).toFixed(1)})`;
  }

  #drawMarks() {
    const context = this.marks.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.marks.width, this.marks.height);
    context.scale(this.marks.width / this.heat.experts, this.marks.height / this.heat.layers);
    const { replicas } = this.holdings ?? {};
    if (replicas?.length === this.heat.cells.length) {
      context.fillStyle = css("--bad");
      for (let index = 0; index < replicas.length; index++) {
        if (replicas[index] === 0) context.fillRect(index % this.heat.experts, Math.floor(index / this.heat.experts), 1, 1);
      }
    }
    if (!this.cursor) return;
    const unit = [this.marks.width / this.heat.experts, this.marks.height / this.heat.layers];
    context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    const [x, y] = [this.cursor.expert * unit[0], this.cursor.layer * unit[1]].map((v) => v / devicePixelRatio);
    const [w, h] = unit.map((v) => v / devicePixelRatio);
    for (const [grow, colour] of [[3, "#000"], [1.5, "#fff"]]) {
      context.strokeStyle = colour;
      context.lineWidth = 1.5;
      context.strokeRect(x - grow, y - grow, w + 2 * grow, h + 2 * grow);
    }
  }

  #read() {
    if (!this.cursor) return;
    const { layer, expert } = this.cursor;
    const { cells, peak, experts } = this.heat;
    const index = layer * experts + expert;
    const times = peak * (cells[index] / 255) ** 2;
    const holders = [...(this.holdings?.shards ?? [])].filter(([, held]) => held.has(index)).map(([id]) => id);
    const where = !this.holdings ? "" : holders.length
      ? `; on ${holders.slice(0, NAMED_SHARDS).join(", ")}` : "; on no shard";
    const text = `Layer ${layer}, expert ${expert}: ${times.toFixed(2)} times the layer's mean${where}.`;
    if (at("readout").textContent !== text) at("readout").textContent = text;
  }

  #point(event) {
    const box = this.marks.getBoundingClientRect();
    this.#moveTo(Math.floor(((event.clientY - box.top) / box.height) * this.heat.layers),
      Math.floor(((event.clientX - box.left) / box.width) * this.heat.experts));
  }

  #key(event) {
    const { layer, expert } = this.cursor ?? { layer: 0, expert: -1 };
    const to = {
      ArrowLeft: [layer, expert - 1], ArrowRight: [layer, expert + 1], ArrowUp: [layer - 1, expert],
      ArrowDown: [layer + 1, expert], Home: [layer, 0], End: [layer, Infinity],
      PageUp: [layer - 10, expert], PageDown: [layer + 10, expert],
    }[event.key];
    if (!to || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.#moveTo(...to);
    const scroll = at("heat-scroll");
    const x = (this.cursor.expert / this.heat.experts) * this.width;
    if (x < scroll.scrollLeft || x > scroll.scrollLeft + scroll.clientWidth - 20) scroll.scrollLeft = x - scroll.clientWidth / 2;
  }

  #moveTo(layer, expert) {
    const within = (value, count) => Math.max(0, Math.min(count - 1, value));
    this.cursor = { layer: within(layer, this.heat.layers), expert: within(expert, this.heat.experts) };
    this.#later();
  }

  #legend() {
    const context = at("scale").getContext("2d");
    const image = context.createImageData(256, 1);
    new Uint32Array(image.data.buffer).set(PALETTE);
    context.putImageData(image, 0, 0);
  }
}

/** A holdings message → {layers, experts, replicas: Uint8Array, shards: Map(id → Set of layer × experts + expert)}. */
export function readHoldings({ layers, experts, replicas, shards }) {
  const sets = Object.entries(shards).map(([id, { counts, experts: packed }]) => {
    const numbers = new Uint16Array(bytes(packed).buffer);
    const held = new Set();
    let next = 0;
    counts.forEach((count, layer) => {
      for (; count > 0; count--) held.add(layer * experts + numbers[next++]);
    });
    return [id, held];
  });
  return { layers, experts, replicas: bytes(replicas), shards: new Map(sets) };
}
