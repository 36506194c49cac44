"use strict";
/* The report's reader: list, search, one message's drawing.  Text from traffic only ever becomes text nodes. */
(() => {
  const HTML = "http://www.w3.org/1999/xhtml", SVG = "http://www.w3.org/2000/svg";
  const ROW = 34, SPARE = 12, PRINTED = 1000, MEASURE = 6.4, LADDER = 20;
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const entry = (shape, row) => Object.fromEntries(data.shapes[shape].map((name, i) => [name, row[i]]));
  const messages = data.messages.map((row, i) => ({ ...entry("Entry", row), index: i }));
  const byTrace = new Map(messages.map((m) => [m.trace_id, m]));

  // elements

  function element(space, name, attributes, ...children) {
    const made = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (typeof value === "function") made.addEventListener(key, value);
      else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }
  const h = (name, attributes, ...children) => element(HTML, name, attributes, ...children);
  const s = (name, attributes, ...children) => element(SVG, name, attributes, ...children);

  // words

  function duration(value) {
    if (value === null || value === undefined) return "";
    const sign = value < 0 ? "-" : "", v = Math.abs(value);
    const text =
      v === 0 ? "0 ms" : v < 0.00005 ? "<0.1 ms" : v < 0.00995 ? (v * 1000).toFixed(1) + " ms" : v < 0.9995 ? (v * 1000).toFixed(0) + " ms" :
      v < 9.995 ? v.toFixed(2) + " s" : v < 119.95 ? v.toFixed(1) + " s" : v < 7170 ? (v / 60).toFixed(0) + " min" :
      v < 172800 ? (v / 3600).toFixed(1) + " h" : (v / 86400).toFixed(1) + " days";
    return sign + text;
  }
  const fine = (ns) => (ns < 1e5 ? (ns / 1e3).toFixed(0) + " µs" : duration(ns / 1e9));
  const after = (ns) => (ns === null ? "" : (ns < 0 ? "−" : "+") + (Math.abs(ns) / 1e9).toFixed(4) + " s");
  const tick = (ns) => (ns === 0 ? "0" : (ns < 0 ? "−" : "+") + fine(Math.abs(ns)));
  const clock = (ms) => (ms === null ? "" : new Date(ms).toISOString().replace("T", " ").slice(0, 19));
  const marked = (outcome) => (data.marks[outcome] ? data.marks[outcome] + " " : "") + outcome;
  const cut = (text, pixels) => {
    const most = Math.max(Math.floor(pixels / MEASURE), 3);
    return text.length > most ? text.slice(0, most - 1) + "…" : text;
  };
  const say = (text) => { byId("said").textContent = text; };

  // the list

  const COLUMNS = [
    ["ts", "start", (m) => clock(m.ts)], ["sender", "from", (m) => m.sender], ["to", "to", (m) => m.to],
    ["subject", "subject", (m) => m.subject || m.message_id], ["hops", "hops", (m) => String(m.hops)],
    ["elapsed_s", "total", (m) => duration(m.elapsed_s)], ["outcome", "outcome", (m) => marked(m.outcome)],
    ["reply", "last reply", (m) => m.reply],
  ];
  const NUMBERS = new Set(["hops", "elapsed_s"]);
  const FIELDS = { from: "sender", to: "to", subject: "subject", status: "outcome", outcome: "outcome", id: "message_id", reply: "reply", rcpt: "to", trace: "trace_id" };
  const haystacks = messages.map((m) => [m.message_id, m.sender, m.to, m.subject, m.outcome, m.reply, m.trace_id, m.facts].join("\n").toLowerCase());
  const list = { shown: messages, sort: "ts", down: false, at: 0, outcomes: new Set(), open: null, first: -1, last: -1 };
  const scroller = byId("scroller"), body = byId("rows");

  function wanted(text) {
    const tests = [];
    for (const [, minus, field, quoted, bare] of text.matchAll(/(-?)(?:([a-z]+):)?(?:"([^"]*)"?|(\S+))/gi)) {
      const key = FIELDS[(field || "").toLowerCase()];
      const word = (quoted ?? bare ?? "").toLowerCase();
      const whole = key ? word : ((field ? field + ":" : "") + word).toLowerCase();
      if (!whole) continue;
      const found = key ? (m) => String(m[key]).toLowerCase().includes(whole) : (m) => haystacks[m.index].includes(whole);
      tests.push(minus ? (m) => !found(m) : found);
    }
    return (m) => (!list.outcomes.size || list.outcomes.has(m.outcome)) && tests.every((test) => test(m));
  }

  function order(a, b) {
    const x = a[list.sort], y = b[list.sort];
    if (x === y) return a.index - b.index;
    if (x === null || x === "") return 1;
    if (y === null || y === "") return -1;
    return (x < y ? -1 : 1) * (list.down ? -1 : 1);
  }

  function refresh() {
    list.shown = messages.filter(wanted(byId("search").value)).sort(order);
    list.at = Math.max(list.shown.indexOf(list.open), 0);
    byId("found").textContent = list.shown.length === messages.length
      ? `${messages.length.toLocaleString("en")} messages`
      : `${list.shown.length.toLocaleString("en")} of ${messages.length.toLocaleString("en")} messages`;
    scroller.scrollTop = 0;
    window_(true);
  }

  function window_(force, everything) {
    const count = list.shown.length;
    const room = Math.ceil(scroller.clientHeight / ROW);
    const first = everything ? 0 : Math.max(Math.floor(scroller.scrollTop / ROW) - SPARE, 0);
    const last = everything ? Math.min(count, PRINTED) : Math.min(first + room + 2 * SPARE, count);
    if (!force && first === list.first && last === list.last) return;
    const focused = body.contains(document.activeElement) ? list.at : -1;
    [list.first, list.last] = [first, last];
    const space = (rows) => {
      const cell = h("td", { colspan: COLUMNS.length });
      cell.style.height = rows * ROW + "px";
      return rows > 0 ? h("tr", { class: "space", "aria-hidden": "true" }, cell) : null;
    };
    const rows = list.shown.slice(first, last).map((m, i) => row(m, first + i));
    body.replaceChildren(...[space(first), ...rows, space(everything ? 0 : count - last)].filter(Boolean));
    byId("list").setAttribute("aria-rowcount", count + 1);
    if (focused >= first && focused < last) body.querySelector(`[data-at="${focused}"] a`).focus({ preventScroll: true });
  }

  function row(m, at) {
    const cells = COLUMNS.map(([key, , text], i) => {
      const value = text(m);
      const style = key === "outcome" ? data.styles[m.outcome] || "" : "";
      const inside = i === 0
        ? h("a", { href: "#m=" + m.trace_id, tabindex: at === list.at ? "0" : "-1", "aria-label": `${value || "no time"}, ${m.subject || m.message_id}` }, h("span", { class: "day" }, value.slice(0, 11)), value.slice(11) || "–")
        : value;
      return h("td", { class: `c-${key} ${NUMBERS.has(key) ? "number" : ""} ${style}`, title: value.length > 14 ? value : null }, inside);
    });
    return h("tr", { "data-at": at, "data-trace": m.trace_id, "aria-rowindex": at + 2, "aria-current": m === list.open ? "true" : null }, ...cells);
  }

  function heads() {
    byId("heads").replaceChildren(...COLUMNS.map(([key, name]) => {
      const sorted = list.sort === key;
      const sign = sorted ? (list.down ? " ▼" : " ▲") : "";
      const click = () => {
        list.down = sorted && !list.down;
        list.sort = key;
        heads();
        refresh();
        byId("heads").querySelector(`.c-${key} button`).focus();
      };
      return h("th", { scope: "col", class: `c-${key} ${NUMBERS.has(key) ? "number" : ""}`, "aria-sort": sorted ? (list.down ? "descending" : "ascending") : "none" },
        h("button", { type: "button", click }, name + sign));
    }));
  }

  function move(to) {
    list.at = Math.min(Math.max(to, 0), list.shown.length - 1);
    const top = list.at * ROW;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    if (top + 2 * ROW > scroller.scrollTop + scroller.clientHeight - ROW) scroller.scrollTop = top + 3 * ROW - scroller.clientHeight;
    window_(true);
    const link = body.querySelector(`[data-at="${list.at}"] a`);
    if (link) link.focus({ preventScroll: true });
  }

  scroller.addEventListener("scroll", () => requestAnimationFrame(() => window_(false)), { passive: true });
  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr[data-trace]");
    if (line && !String(getSelection()) && !event.target.closest("a")) location.hash = "m=" + line.dataset.trace;
  });
  body.addEventListener("focusin", (event) => {
    const line = event.target.closest("tr[data-at]");
    if (line) list.at = Number(line.dataset.at);
  });
  body.addEventListener("keydown", (event) => {
    const page = Math.floor(scroller.clientHeight / ROW) - 1;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 };
    if (event.key in steps && !event.ctrlKey && !event.altKey) {
      event.preventDefault();
      move(list.at + steps[event.key]);
    }
  });
  byId("search").addEventListener("input", refresh);
  for (const chip of document.querySelectorAll(".chip")) {
    chip.addEventListener("click", () => {
      const on = chip.getAttribute("aria-pressed") !== "true";
      chip.setAttribute("aria-pressed", on);
      list.outcomes[on ? "add" : "delete"](chip.dataset.outcome);
      refresh();
    });
  }

  // details

  const blocks = new Map();
  async function inflate(number) {
    const octets = Uint8Array.from(atob(byId("block-" + number).textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([octets]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }
  function arrows(columns) {
    const names = data.shapes.Arrow, last = { at: 0, frame: 0 };
    return (columns[0] || []).map((_, i) => Object.fromEntries(names.map((name, n) => {
      const value = columns[n][i];
      return [name, name in last && value !== null ? (last[name] += value) : value];
    })));
  }
  async function detail(m) {
    const number = Math.floor(m.index / data.block);
    if (!blocks.has(number)) {
      if (blocks.size > 20) blocks.delete(blocks.keys().next().value);
      blocks.set(number, inflate(number));
    }
    const found = entry("Detail", (await blocks.get(number))[m.index % data.block]);
    const drawing = entry("Drawing", found.drawing);
    drawing.lanes = drawing.lanes.map((lane) => entry("Lane", lane));
    drawing.arrows = arrows(drawing.arrows);
    drawing.rows = drawing.rows.map((line) => {
      const made = entry("Row", line);
      made.bars = made.bars.map((bar) => entry("Bar", bar));
      return made;
    });
    return { ...found, drawing };
  }

  // the waterfall

  const pace = ([a, x], [b, y]) => (b - a) / Math.max(y - x, 1e-9);
  const pairs = (scale) => scale.slice(1).map((point, i) => [scale[i], point]);
  function place(scale, at) {
    let i = 1;
    while (i < scale.length - 1 && scale[i][0] < at) i++;
    const [[a, x], [b, y]] = [scale[i - 1], scale[i]];
    return Math.min(Math.max(x + ((y - x) * (at - a)) / (b - a), 0), 1);
  }
  function folds(scale) {
    const usual = Math.min(...pairs(scale).map(([a, b]) => pace(a, b)));
    return pairs(scale).filter(([a, b]) => pace(a, b) > usual * 1.5).map(([a, b]) => [a[0], b[0]]);
  }
  function ticks(scale, most) {
    const least = Math.min(...pairs(scale).map(([a, b]) => pace(a, b))) / most;
    let step = 1;
    for (let i = 0; step < least; i++) step = [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3);
    const skipped = new Set(folds(scale).map(String)), found = new Set();
    for (const [[a], [b]] of pairs(scale)) {
      if (skipped.has(String([a, b]))) continue;
      for (let at = Math.ceil(a / step) * step; at <= b; at += step) found.add(at);
    }
    return [...found];
  }

  function waterfall(drawing, width, straight, readout) {
    const narrow = width < 640, labels = narrow ? 0 : Math.min(310, width * 0.32), line = narrow ? 56 : 38, top = 28;
    const scale = straight ? [drawing.scale[0], drawing.scale[drawing.scale.length - 1]] : drawing.scale;
    const room = width - labels - (narrow ? 8 : 120), height = top + line * drawing.rows.length + 30;
    const x = (at) => labels + 4 + place(scale, at) * room;
    const svg = s("svg", { class: "mh", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Waterfall: the table below says the same" });
    const text = (at, y, words, kind, anchor) => svg.append(s("text", { x: at, y, class: kind, "text-anchor": anchor }, words));
    let labelled = -99, low = false;
    for (const [a, b] of folds(scale)) {
      svg.append(s("rect", { class: "fold", x: x(a), y: top - 6, width: x(b) - x(a), height: height - top - 22 }, s("title", {}, `${fine(b - a)} in which nothing was seen, folded`)));
      const middle = (x(a) + x(b)) / 2;
      low = middle - labelled < 84 && !low;
      labelled = middle;
      text(middle, height - (low ? 4 : 17), `⋯ ${fine(b - a)} ⋯`, "soft small", "middle");
    }
    let right = -99;
    for (const at of ticks(scale, Math.max(room / 110, 2))) {
      if (x(at) - right < 62 || x(at) > width - 24) continue;
      right = x(at);
      svg.append(s("line", { class: "grid", x1: right, x2: right, y1: top - 6, y2: height - 29 }));
      text(right, top - 12, tick(at), "soft small", "middle");
    }
    drawing.rows.forEach((it, i) => {
      const y = top + line * i, hop = it.kind === "hop", inset = hop ? 0 : narrow ? 0 : 16, mid = narrow ? y + 42 : y + 19;
      if (hop && i) svg.append(s("line", { class: "rule", x1: 0, x2: width, y1: y - 1, y2: y - 1 }));
      const labelRoom = (narrow ? width : labels) - inset - 8;
      text(inset, y + 15, cut(it.label, labelRoom / (hop ? 1.08 : 1)), hop ? "bold" : "");
      text(inset, y + 29, cut(it.detail, labelRoom * 1.06), "soft small");
      let first = width + 2, last = 0;
      for (const bar of it.bars) {
        const left = x(bar.start), wide = Math.max(x(bar.start + bar.length) - left, 2);
        first = Math.min(first, left);
        last = Math.max(last, left + wide);
        const facts = `${it.label}: ${bar.phase === "whole" ? (it.basis === "observed" ? "MAIL to last reply" : it.basis) : bar.phase} ${fine(bar.length)} from ${after(bar.start)}${bar.detail ? " · " + bar.detail : ""}`;
        const marks = { "data-phase": bar.phase, "data-hop": it.hop, "data-start": bar.start, "data-length": bar.length, pointerenter: () => { readout.textContent = facts; } };
        const tip = s("title", {}, facts);
        const box = (tall, kind) => s("rect", { ...marks, class: "bar " + kind, x: left, y: mid - tall / 2, width: wide, height: tall, rx: 2.5 }, tip);
        if (bar.phase === "queue") {
          svg.append(s("rect", { ...marks, class: "touch bar", x: left, y: mid - 8, width: wide, height: 16 }, tip));
          svg.append(s("line", { class: "queue", x1: left + 2, x2: left + wide - 2, y1: mid, y2: mid }));
          const words = `${bar.detail.includes("mailbox") ? "mailbox" : "queue"} ${fine(bar.length)}`;
          if (wide > words.length * MEASURE + 6) text(left + wide / 2, mid - 5, words, "soft small halo", "middle");
          else if (bar.length >= 1e8 && left - labels > words.length * MEASURE + 10) {
            text(left - 6, mid + 4, words, "soft small halo", "end");
            first = Math.min(first, left - 6 - words.length * MEASURE);
          }
        } else if (bar.phase === "whole") {
          svg.append(box(24, "whole" + (it.basis === "observed" ? "" : " dashed")));
        } else if (bar.phase === "event") {
          svg.append(s("path", { ...marks, class: "bar p-event", d: `M${left} ${mid - 6}l6 6l-6 6l-6-6z` }, tip));
        } else {
          svg.append(box(hop ? 15 : 10, "p-" + bar.phase));
          if (hop && wide > bar.phase.length * MEASURE + 6) text(left + 4, mid + 4, bar.phase, "inbar");
        }
      }
      if (it.result) {
        const style = `small halo ${data.styles[it.outcome] || ""}`;
        if (narrow) text(width - 2, y + 15, it.result.length * MEASURE + it.label.length * MEASURE * 1.1 < width ? it.result : marked(it.outcome), style, "end");
        else if (last + it.result.length * MEASURE + 8 < width) text(last + 7, mid + 4, it.result, style);
        else if (first - 6 - it.result.length * MEASURE > labels) text(first - 6, mid + 4, it.result, style, "end");
        else text(width - 2, y + 8, it.result, style, "end"); // no room beside its bars: above them
      }
    });
    return svg;
  }

  function barTable(drawing) {
    const rows = drawing.rows.flatMap((it) => it.bars.map((bar) => h("tr", {},
      h("td", {}, it.hop === null ? "" : String(it.hop)), h("td", {}, it.label), h("td", {}, bar.phase === "whole" ? "hand-over" : bar.phase),
      h("td", { class: "number" }, after(bar.start)), h("td", { class: "number" }, fine(bar.length)), h("td", {}, bar.detail))));
    return table(["hop", "row", "phase", "start", "length", "detail"], rows, "", [3, 4]);
  }

  function table(names, rows, kind, numbers) {
    const head = names.map((name, i) => h("th", { scope: "col", class: (numbers || []).includes(i) ? "number" : null }, name));
    return h("div", { class: "wide" }, h("table", { class: "plain " + (kind || "") }, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows)));
  }

  // the ladder

  function ladder(drawing, width) {
    const count = drawing.lanes.length, left = 74, line = 25, top = 4, head = 52;
    const gap = Math.max(132, Math.min(230, (width - left - 150) / Math.max(count - 1, 1)));
    const whole = Math.max(width, left + 66 + gap * (count - 1) + 84);
    const lines = [];
    let before = null;
    for (const arrow of drawing.arrows) {
      if (arrow.hop !== null && arrow.hop !== before) lines.push({ heading: (before = arrow.hop) });
      lines.push(arrow);
    }
    const height = top + line * lines.length + 10;
    const parts = []; // several pictures, one below the other: a printer breaks pages between them
    for (let at = 0; at < height; at += line * LADDER) {
      const tall = Math.min(line * LADDER, height - at);
      parts.push(s("svg", { class: "mh ladder", width: whole, height: tall, viewBox: `0 ${at} ${whole} ${tall}`, role: "img", "aria-label": "Ladder: the steps say the same as a table" }));
    }
    const part = (y) => parts[Math.min(Math.floor(y / (line * LADDER)), parts.length - 1)];
    const lanes = s("svg", { class: "mh lanes", width: whole, height: head, viewBox: `0 0 ${whole} ${head}`, "aria-hidden": "true" });
    const lane = (number) => left + 66 + gap * Math.max(number, 0);
    const text = (x, y, words, kind, anchor, full, into = part(y)) =>
      into.append(s("text", { x, y, class: kind, "text-anchor": anchor }, full && full !== words ? s("title", {}, full) : null, words));
    lines.forEach((it, i) => {
      if (it.heading !== undefined) part(top + line * i + 2).append(s("rect", { class: "band", x: 0, y: top + line * i + 2, width: whole, height: 19 }));
    });
    drawing.lanes.forEach((it, i) => {
      const name = cut(it.name, gap - 6), address = cut(it.address, gap - 6);
      text(lane(i), 14, cut(it.roles, gap - 6), "bold", "middle", it.roles, lanes);
      text(lane(i), 30, name, "", "middle", it.name, lanes);
      text(lane(i), 45, address, "soft small", "middle", it.address, lanes);
      for (const each of parts) each.append(s("line", { class: "rule", x1: lane(i), x2: lane(i), y1: 0, y2: height }));
    });
    lines.forEach((it, i) => {
      const y = top + line * i + 16;
      if (it.heading !== undefined) {
        const found = drawing.rows.find((r) => r.kind === "hop" && r.hop === it.heading);
        text(6, y, found ? `${found.label}  ${found.result}` : `hop ${it.heading}`, "bold small");
        return;
      }
      const a = lane(it.start), b = lane(it.end), mark = s("g", { class: "k-" + it.kind });
      text(left - 10, y + 4, after(it.at), "soft small", "end");
      if (a === b) mark.append(s("circle", { class: "tip", cx: a, cy: y + 4, r: 4 }));
      else {
        const way = b > a ? 1 : -1;
        mark.append(s("line", { class: "stem" + (it.basis === "observed" ? "" : " dashed"), x1: a, x2: b - 6 * way, y1: y + 4, y2: y + 4 }));
        mark.append(s("path", { class: "tip", d: `M${b} ${y + 4}l${-8 * way} -4v8z` }));
      }
      part(y).append(mark);
      const words = cut(it.text, Math.max(Math.abs(a - b) - 14, 240));
      const at = Math.min(Math.min(a, b) + 9, whole - 6 - words.length * MEASURE);
      text(at, y, words, "small halo", null, it.text);
    });
    return [lanes, ...parts];
  }

  // steps and evidence

  async function copy(text, from) {
    try {
      await navigator.clipboard.writeText(text);
      say("Copied: " + text);
      from.textContent = "copied";
      setTimeout(() => { from.textContent = "copy"; }, 1500);
    } catch {
      const range = document.createRange();
      range.selectNodeContents(from.previousElementSibling || from);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      say("Selected; copy it with the keyboard");
    }
  }
  const filter = (text) => h("span", {}, h("code", {}, text), " ", h("button", { type: "button", "aria-label": "Copy filter " + text, click: (e) => copy(text, e.currentTarget) }, "copy"));

  function steps(drawing) {
    const many = new Set(drawing.arrows.map((a) => a.source).filter(Boolean)).size > 1;
    const name = (number) => (number < 0 ? "" : drawing.lanes[number].name);
    const rows = [];
    let before = null;
    drawing.arrows.forEach((it, i) => {
      if (it.hop !== null && it.hop !== before) {
        before = it.hop;
        const found = drawing.rows.find((r) => r.kind === "hop" && r.hop === before);
        rows.push(h("tr", { class: "group" }, h("th", { scope: "rowgroup", colspan: 6 }, found ? `${found.label}: ${found.detail}` : `hop ${before}`)));
      }
      const frame = it.frame === null ? (it.basis === "claimed" ? "claimed" : "") : filter(`frame.number == ${it.frame}`);
      rows.push(h("tr", {}, h("td", { class: "number" }, String(i + 1)), h("td", { class: "number" }, after(it.at)),
        h("td", { class: "who" }, it.start === it.end ? name(it.start) : `${name(it.start)} → ${name(it.end)}`), h("td", {}, it.kind), h("td", {}, it.text),
        h("td", { class: "tight" }, frame, many && it.source ? h("div", { class: "soft" }, it.source) : null)));
    });
    return table(["step", "time", "who", "kind", "what", "frame"], rows, "steps", [0, 1]);
  }

  function evidence(m, found) {
    const made = [h("h3", {}, "The whole message in Wireshark")];
    for (const [source, text] of found.filters) made.push(h("p", {}, h("span", { class: "soft" }, source + ": "), filter(text)));
    if (!found.filters.length) made.push(h("p", {}, "No packet of it is in the capture."));
    made.push(h("h3", {}, "Hops"), table(["hop", "basis", "source", "session", "frames", "filter", "SHA-256 of the message"], found.hops.map((hop) => h("tr", {},
      h("td", {}, String(hop[0])), h("td", { class: "tight" }, hop[1]), h("td", {}, hop[2]), h("td", { class: "tight" }, hop[3] ? h("code", {}, hop[3]) : ""),
      h("td", { class: "tight" }, hop[4] === null ? "" : `${hop[4]}–${hop[5]}`), h("td", {}, hop[6] ? filter(hop[6]) : "not in packets"), h("td", {}, hop[7] ? h("code", {}, hop[7].slice(0, 16) + "…") : "")))));
    const part = (title, names, rows) => { if (rows.length) made.push(h("h3", {}, title), table(names, rows.map((cells) => h("tr", {}, ...cells.map((cell) => h("td", {}, String(cell ?? ""))))))); };
    if (found.verdicts.length) {
      made.push(h("h3", {}, "Authentication"), h("p", { class: "help" }, "Evaluated again, from the captured message and the captured DNS answers alone."),
        table(["hop", "method", "result", "domain", "why", "the server wrote"], found.verdicts.map(([hop, method, result, style, domain, why, wrote]) => h("tr", {},
          h("td", {}, String(hop)), h("td", {}, method), h("td", { class: "tight" }, h("span", { class: style }, result)), h("td", {}, domain), h("td", {}, why), h("td", {}, wrote))), "verdicts"));
    }
    part("Recipients", ["recipient", "outcome", "tries", "reply"], found.fates.map((f) => [f[0], marked(f[1]), f[2], f[3]]));
    part("Why these hops are one message", ["hop", "joined to hop", "keys that agree", "score", "against it"], found.joins);
    part("Odd", ["name", "detail", "source", "frame"], found.odd);
    return made;
  }

  // one message

  const panel = byId("message");
  let tab = "waterfall", straight = false, drawn = null;

  async function open(m, focus) {
    list.open = m;
    if (list.shown[list.at] !== m && list.shown.includes(m)) list.at = list.shown.indexOf(m);
    window_(true);
    let found;
    try {
      found = await detail(m);
    } catch (error) {
      panel.hidden = false;
      panel.replaceChildren(h("h2", { id: "subject", tabindex: "-1" }, m.subject || m.message_id), h("p", {}, "This browser cannot open the details (it needs DecompressionStream, 2023 or later)."));
      return;
    }
    if (list.open !== m) return;
    drawn = { m, found };
    show();
    if (focus) {
      byId("subject").focus({ preventScroll: true });
      panel.scrollIntoView({ block: "start" });
    }
  }

  function show() {
    const { m, found } = drawn;
    const step = (by, words) => {
      const next = list.shown[list.shown.indexOf(m) + by];
      return h("button", { type: "button", disabled: !next, "aria-label": words + " message", click: () => { location.hash = "m=" + next.trace_id; } }, by < 0 ? "◀" : "▶");
    };
    const readout = h("p", { class: "readout soft", "aria-hidden": "true" }, "Point at a bar for its times.");
    const parent = byTrace.get(m.parent);
    const facts = [m.size !== null ? `${m.size.toLocaleString("en")} octets` : "", `${m.hops} hop${m.hops === 1 ? "" : "s"}`, clock(m.ts) && clock(m.ts) + " UTC", m.facts].filter(Boolean).join(" · ");
    panel.hidden = false;
    const panes = {
      waterfall: ["Waterfall", () => {
        const folded = folds(found.drawing.scale).length > 0;
        const toggle = h("label", { class: "scale" }, h("input", { type: "checkbox", id: "straight", change: (e) => { straight = e.target.checked; show(); byId("straight").focus(); } }), " true scale (otherwise long pauses are folded)");
        toggle.firstChild.checked = straight;
        return [folded ? toggle : null, h("div", { class: "figure", id: "waterfall" }, waterfall(found.drawing, inner(), straight && folded, readout)), readout, legend(found.drawing),
          h("details", {}, h("summary", {}, "These bars as a table"), barTable(found.drawing))].filter(Boolean);
      }],
      ladder: ["Ladder", () => [h("div", { class: "figure", id: "ladder", tabindex: "0", role: "region", "aria-label": "Ladder, scrollable" }, ...ladder(found.drawing, inner())), omitted(found)].filter(Boolean)],
      steps: ["Steps", () => [steps(found.drawing), omitted(found)].filter(Boolean)],
      evidence: ["Evidence", () => evidence(m, found)],
    };
    const names = Object.keys(panes);
    const choose = (name, focus) => {
      tab = name;
      for (const each of names) {
        const on = each === name, button = byId("tab-" + each);
        button.setAttribute("aria-selected", on);
        button.tabIndex = on ? 0 : -1;
        byId("panel-" + each).hidden = !on;
        if (on && focus) button.focus();
      }
    };
    const keys = (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by) choose(names[(names.indexOf(tab) + by + names.length) % names.length], true);
    };
    panel.replaceChildren(
      h("div", { class: "crumbs" }, h("h2", { id: "subject", tabindex: "-1" }, m.subject || m.message_id || "Message without subject"), step(-1, "Previous"), step(1, "Next")),
      h("p", { class: "facts" }, h("span", { class: "badge " + (data.styles[m.outcome] || "") }, marked(m.outcome)), m.elapsed_s === null ? "" : " in " + duration(m.elapsed_s), ` · ${m.sender || "?"} → ${m.to || "?"}`),
      h("p", { class: "facts soft" }, facts),
      h("p", { class: "facts spent" }, h("strong", {}, "Where the time went: "), found.spent),
      found.unseen.length ? h("p", { class: "facts" }, h("strong", {}, "Not seen: "), found.unseen.join("; ") + ".") : "",
      h("p", { class: "facts soft" }, h("code", {}, m.message_id), " ", h("a", { href: "#m=" + m.trace_id }, "permalink"), m.relation ? ` · ${m.relation} of ` : "", parent ? h("a", { href: "#m=" + parent.trace_id }, parent.subject || parent.message_id) : m.parent ? m.parent : ""),
      h("div", { role: "tablist", "aria-label": "Views of this message", keydown: keys },
        ...names.map((name) => h("button", { type: "button", role: "tab", id: "tab-" + name, "aria-controls": "panel-" + name, click: () => choose(name, false) }, panes[name][0]))),
      ...names.map((name) => h("div", { role: "tabpanel", "data-title": panes[name][0], id: "panel-" + name, "aria-labelledby": "tab-" + name, tabindex: "-1" }, ...panes[name][1]())),
    );
    choose(tab, false);
  }
  const inner = () => Math.max(Math.floor(panel.clientWidth - (innerWidth <= 760 ? 24 : 36)), 280);
  const omitted = (found) => (found.drawing.omitted ? h("p", { class: "help" }, `${found.drawing.omitted.toLocaleString("en")} more steps are not in this report; mailhop trace --json has them all.`) : null);
  function legend(drawing) {
    const used = new Set(drawing.rows.flatMap((it) => it.bars.map((bar) => bar.phase)));
    const names = ["queue", "dns", "connect", "greeting", "tls", "auth", "envelope", "transfer", "accept", "tried", "event", "whole"].filter((name) => used.has(name));
    const sample = (name) => (name === "queue" ? s("line", { class: "queue", x1: 1, x2: 21, y1: 6, y2: 6 }) : s("rect", { class: name === "whole" ? "whole" : "p-" + name, x: 1, y: 1, width: 20, height: 10, rx: 2 }));
    const words = { whole: "MAIL (RETR, FETCH) to the last reply; dashed: unreadable session, or claimed only", queue: "waiting in a queue or mailbox", dns: "DNS lookups", event: "mailbox event", tried: "tried in vain", envelope: "envelope: MAIL, RCPT, DATA", transfer: "transfer of the message", accept: "accept: until the last reply" };
    return h("ul", { class: "legend" }, ...names.map((name) => h("li", {}, s("svg", { class: "mh", width: 22, height: 12, "aria-hidden": "true" }, sample(name)), words[name] || name)));
  }

  // the address

  function follow(focus) {
    const id = /^#m=([0-9a-z]+)/.exec(location.hash);
    const m = id && byTrace.get(id[1]);
    if (m) open(m, focus);
    else if (id) say("This report has no message " + id[1]);
    return Boolean(m);
  }
  addEventListener("hashchange", () => follow(true));
  let timer = 0, before = innerWidth;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (innerWidth !== before && drawn) show();
      before = innerWidth;
      window_(true);
    }, 120);
  });
  addEventListener("beforeprint", () => window_(true, true));
  addEventListener("afterprint", () => window_(true));
  heads();
  refresh();
  if (!follow(false) && messages.length) open(messages[0], false);
})();
