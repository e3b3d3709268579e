// What happened, from one message to the next: tables, decisions, shards, experts that came and went.

const KEPT = 200;
const NAMED = 4;

const at = (id) => document.getElementById(id);

export class Log {
  constructor() {
    this.state = this.holdings = null;
  }

  addState(state) {
    for (const line of stateChanges(this.state, state)) this.#add(line);
    this.state = state;
  }

  addHoldings(holdings) {
    for (const line of moves(this.holdings, holdings)) this.#add(line);
    this.holdings = holdings;
  }

  #add(line) {
    const now = new Date();
    const time = Object.assign(document.createElement("time"), {
      textContent: now.toLocaleTimeString("en-GB"), dateTime: now.toISOString(),
    });
    const item = document.createElement("li");
    item.append(time, ` ${line}`);
    const list = at("log");
    list.prepend(item);
    while (list.children.length > KEPT) list.lastChild.remove();
    list.hidden = false;
    at("log-empty").hidden = true;
  }
}

/** Sentences; `was` is null at first. */
export function stateChanges(was, now) {
  const lines = [];
  if (now.decision && (!was || isNewer(was.decision, now.decision))) lines.push(decision(now.decision, !was));
  if (!was) return lines;
  const before = new Map(was.shards.map((shard) => [shard.id, shard.state]));
  for (const { id, state } of now.shards) {
    if (!before.has(id)) lines.push(`Shard ${id} has come: ${state}.`);
    else if (before.get(id) !== state) lines.push(`Shard ${id}: ${before.get(id)} → ${state}.`);
    before.delete(id);
  }
  for (const id of before.keys()) lines.push(`Shard ${id} is gone.`);
  if (was.table_version !== now.table_version) lines.push(`Table version ${now.table_version}.`);
  return lines;
}

function isNewer(was, now) {
  return !was || now.age_s < was.age_s;
}

function decision(made, isOld) {
  const when = isOld ? `, ${Math.round(made.age_s)} s ago` : "";
  const verdict = made.accepted ? `accepted, ${made.moves} moves` : "refused";
  return `Placement ${verdict}${when} (${made.cause}): ${made.reason}; max/mean ` +
    `${made.imbalance_before.toFixed(2)} → ${made.imbalance_after.toFixed(2)}.`;
}

/** What shards have taken in or given up. */
export function moves(was, now) {
  const lines = [];
  if (!was) return lines;
  for (const [id, held] of now.shards) {
    const before = was.shards.get(id);
    if (!before) continue;
    const name = (index) => `layer ${Math.floor(index / now.experts)} expert ${index % now.experts}`;
    for (const [verb, from, to] of [["took in", before, held], ["gave up", held, before]]) {
      const changed = [...to].filter((index) => !from.has(index));
      if (!changed.length) continue;
      const named = changed.slice(0, NAMED).map(name).join(", ");
      const more = changed.length > NAMED ? ` and ${changed.length - NAMED} more` : "";
      lines.push(`Shard ${id} ${verb} ${named}${more}.`);
    }
  }
  return lines;
}
