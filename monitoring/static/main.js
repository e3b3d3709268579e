// Wires the stream to the parts of the page.

import { Charts } from "./charts.js";
import { Heatmap, readHoldings } from "./heatmap.js";
import { Log } from "./log.js";
import { Shards } from "./shards.js";
import { Stream } from "./stream.js";
import { showCondition, showTiles } from "./tiles.js";

const at = (id) => document.getElementById(id);

const heatmap = new Heatmap();
const charts = new Charts();
const log = new Log();
const shards = new Shards((id) => heatmap.select(id));
let holdings = null;

const SHOW = {
  holdings(data) {
    holdings = readHoldings(data);
    log.addHoldings(holdings);
    heatmap.hold(holdings);
  },
  state(state) {
    connection("live", {});
    showCondition(state);
    showTiles(state);
    heatmap.show(state.heat);
    shards.show(state.shards, state.shards_wanted, holdings);
    charts.add(state);
    log.addState(state);
    document.body.dataset.messages = Number(document.body.dataset.messages ?? 0) + 1;
  },
  away: () => connection("away", {}),
};

const SAYS = {
  connecting: () => "Connecting…",
  live: () => "● live",
  away: () => "▲ The controller does not answer; what you see is what it said last. Requests go on.",
  lost: ({ why, waitS }) => `✖ Disconnected (${why}); what you see is old. Next try in ${Math.ceil(waitS)} s.`,
  key: () => "A key is needed.",
};

function connection(state, details) {
  const text = SAYS[state](details);
  document.body.dataset.connection = state;
  if (at("connection").textContent !== text) at("connection").textContent = text;
  at("retry").hidden = state !== "lost";
  at("key-form").hidden = state !== "key";
  if (state === "key") {
    at("key-why").textContent = details.why;
    at("key").value = "";
    at("key").focus();
  }
}

const stream = new Stream("dashboard/events", (name, data) => SHOW[name]?.(data), (state, details) => {
  // A stream that has opened has said nothing yet.
  if (state !== "live") connection(state, details);
});
at("retry").addEventListener("click", () => stream.start());
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  stream.useKey(at("key").value.trim());
});
// A page that was left may be kept by the browser, with its stream.
addEventListener("pagehide", () => stream.pause());
addEventListener("pageshow", (event) => event.persisted && stream.start());
stream.start();
window.expertmesh = { heatmap }; // for whoever looks with the browser's tools
