// Three lines over the last minutes, by uPlot. What was seen before the page was opened is not known.

/* global uPlot */
import { css, isDark } from "./colours.js";

const KEPT_S = 600;
const HEIGHT = 150;

class Chart {
  /** series: [label, colour variable, dash]; least: the lower end of the axis. */
  constructor(id, series, least) {
    Object.assign(this, { box: document.getElementById(id), series, least });
    this.data = [[], ...series.map(() => [])];
    new ResizeObserver(() => this.plot?.setSize(this.#size())).observe(this.box);
    isDark.addEventListener("change", () => this.#build());
    this.#build();
  }

  add(now, ...values) {
    [now, ...values].forEach((value, index) => this.data[index].push(value ?? null));
    while (this.data[0][0] < now - KEPT_S) this.data.forEach((column) => column.shift());
    this.plot.setData(this.data);
  }

  #size() {
    return { width: Math.max(200, this.box.clientWidth), height: HEIGHT };
  }

  #build() {
    this.plot?.destroy();
    const axis = { stroke: css("--quiet"), grid: { stroke: css("--line"), width: 1 }, ticks: { show: false } };
    this.plot = new uPlot({
      ...this.#size(),
      cursor: { y: false },
      scales: { y: { range: (_, low, high) => [this.least, Math.max(high ?? 0, this.least + 0.1) * 1.05] } },
      axes: [{ ...axis, size: 26, space: 80, values: (_, splits) => splits.map(clock) }, { ...axis, size: 56 }],
      series: [{ value: (_, value) => (value ? clock(value) : "–") }, ...this.series.map(([label, colour, dash]) => ({
        label, dash, stroke: css(colour), width: 2, points: { show: false }, spanGaps: false,
        value: (_, value) => (value === null || value === undefined ? "–" : value.toFixed(2)),
      }))],
    }, this.data, this.box);
  }
}

function clock(unixS) {
  return new Date(1000 * unixS).toLocaleTimeString("en-GB");
}

export class Charts {
  constructor() {
    this.imbalance = new Chart("chart-imbalance", [["mean over layers", "--line-1"], ["worst layer", "--line-2", [5, 4]]], 1);
    this.tokens = new Chart("chart-tokens", [["output", "--line-1"], ["prompt", "--line-2", [5, 4]]], 0);
    this.ttft = new Chart("chart-ttft", [["seconds", "--line-1"]], 0);
  }

  add(state) {
    const now = Date.now() / 1000;
    const worst = state.layer_imbalance && Math.max(...state.layer_imbalance);
    this.imbalance.add(now, state.imbalance, state.imbalance === null ? null : worst);
    this.tokens.add(now, state.output_per_s, state.prompt_per_s);
    this.ttft.add(now, state.ttft_p50_s);
  }
}
