"use strict";
// The transcript viewer. Every text goes in through textContent: it was written by a model.
const Transcripts = (() => {
  const SOURCES = {
    d: ["drafted", "drafted, accepted"],
    c: ["corrected", "corrected after a rejection"],
    b: ["bonus", "bonus after a round without rejection"],
    s: ["sampled", "sampled without a draft"],
    "?": ["unknown", "source not recorded"],
  };
  const SCALES = {
    entropy: { read: (turn, at) => value(turn.entropy, at), share: (nats) => Math.min(1, nats / 2.5), legend: "darker: more entropy (2.5 nats and above: full)" },
    "target probability": { read: (turn, at) => chance(turn.logprob, at), share: (p) => 1 - p, legend: "darker: the policy found its token less likely" },
    overlap: { read: (turn, at) => value(turn.overlap, at), share: (one) => 1 - one, legend: "darker: target and draft agree less" },
  };
  const $ = (id) => document.getElementById(id);
  const value = (list, at) => (list ? list[at] : null);
  const chance = (list, at) => (value(list, at) === null ? null : Math.exp(list[at]));
  let episode = null;
  let colourBy = "source";
  let chosen = null;

  function make(tag, text, className) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  }

  function fill(select, options) {
    select.replaceChildren(...options.map(([key, label]) => { const one = make("option", label); one.value = key; return one; }));
  }

  const run = () => DATA.transcripts[Number($("pick-run").value)];
  const listed = () => {
    const task = $("pick-task").value;
    return run().episodes.map((one, at) => [one, at]).filter(([one]) => !task || one.task === task);
  };

  function pickRun() {
    const before = $("pick-task").value;
    const tasks = [...new Set(run().episodes.map((one) => one.task))];
    fill($("pick-task"), [["", "all"], ...tasks.map((task) => [task, task])]);
    if (tasks.includes(before)) $("pick-task").value = before;
    $("sample-line").textContent = `${run().episodes.length} of the run's ${run().total.toLocaleString("en")} logged transcripts, spread evenly over its steps.`;
    pickTask();
  }

  function pickTask() {
    fill($("pick-episode"), listed().map(([one, at]) => [at, label(one)]));
    pickEpisode();
  }

  function label(one) {
    return [`step ${one.step}`, one.problem || one.task, one.reward === null ? "" : `reward ${one.reward}`, one.reason].filter(Boolean).join(" · ");
  }

  function pickEpisode() {
    episode = run().episodes[Number($("pick-episode").value)];
    chosen = null;
    hideTip();
    show();
  }

  function move(by) {
    const select = $("pick-episode");
    const count = select.options.length;
    select.selectedIndex = (select.selectedIndex + by + count) % count;
    pickEpisode();
  }

  function show() {
    $("episode").replaceChildren(...episode.turns.flatMap((turn, number) => [given(turn), written(turn, number)]));
    showLegend();
    showLine();
  }

  function given(turn) {
    const box = make("details", undefined, "given");
    box.open = turn.given.length < 400;
    box.append(make("summary", "given to the policy"), make("pre", turn.given));
    return box;
  }

  function written(turn, number) {
    const box = make("pre", undefined, "written");
    turn.texts.forEach((text, at) => {
      const token = make("span", text.replace(/\n/g, "↵\n") || "∅", "token");
      token.dataset.turn = number;
      token.dataset.at = at;
      paint(token, turn, at);
      box.append(token);
    });
    return box;
  }

  function paint(token, turn, at) {
    if (colourBy === "source") {
      token.dataset.source = SOURCES[turn.sources[at]][0];
      return;
    }
    const scale = SCALES[colourBy];
    const found = scale.read(turn, at);
    token.style.setProperty("--share", found === null ? 0 : scale.share(found));
    token.classList.add(found === null ? "blank" : "scaled");
  }

  function showLegend() {
    const legend = $("token-legend");
    if (colourBy !== "source") { legend.replaceChildren(make("span", SCALES[colourBy].legend, "note")); return; }
    const letters = episode.turns.map((turn) => turn.sources).join("");
    const counts = Object.keys(SOURCES).map((key) => [key, letters.split(key).length - 1]).filter(([, count]) => count);
    legend.replaceChildren(...counts.map(([key, count]) => {
      const item = make("span", undefined, "item");
      const swatch = make("i", undefined, "dot square");
      swatch.dataset.source = SOURCES[key][0];
      item.append(swatch, `${SOURCES[key][1]}: ${count}`);
      return item;
    }));
  }

  function showLine() {
    const letters = episode.turns.map((turn) => turn.sources).join("");
    const accepted = letters.split("d").length - 1;
    const rounds = letters.split(/[cbs]/).length - 1;
    const nats = episode.turns.flatMap((turn) => turn.entropy || []).filter((one) => one !== null);
    const parts = [`${letters.length} tokens`];
    if (accepted && rounds) parts.push(`${(letters.length / rounds).toFixed(2)} tokens per finished round`);
    if (nats.length) parts.push(`${(nats.reduce((sum, one) => sum + one, 0) / nats.length).toFixed(3)} nats per token`);
    $("episode-line").textContent = [label(episode), ...parts].join(" · ");
  }

  function facts(turn, at) {
    const shown = (number, digits) => (number === null || number === undefined ? "–" : number.toFixed(digits));
    return [
      ["source", SOURCES[turn.sources[at]][1]],
      ["target probability", shown(chance(turn.logprob, at), 4)],
      ["draft probability", shown(chance(turn.draft_logprob, at), 4)],
      ["overlap", shown(value(turn.overlap, at), 4)],
      ["entropy", value(turn.entropy, at) === null ? "–" : `${shown(value(turn.entropy, at), 3)} nats`],
      ["weights", turn.versions[at] === null ? "–" : `version ${turn.versions[at]}`],
    ];
  }

  function tip(token) {
    if (chosen) chosen.classList.remove("chosen");
    chosen = token;
    token.classList.add("chosen");
    const turn = episode.turns[Number(token.dataset.turn)];
    const at = Number(token.dataset.at);
    const box = $("tip");
    const list = make("dl");
    facts(turn, at).forEach(([name, text]) => list.append(make("dt", name), make("dd", text)));
    box.replaceChildren(make("b", JSON.stringify(turn.texts[at])), list);
    box.hidden = false;
    place(box, token);
  }

  function place(box, token) {
    if (matchMedia("(max-width: 640px)").matches) { box.style.left = box.style.top = ""; return; }
    const spot = token.getClientRects()[0];
    const left = Math.max(8, Math.min(spot.left, innerWidth - box.offsetWidth - 8));
    const below = spot.bottom + 8;
    const fits = below + box.offsetHeight < innerHeight;
    box.style.left = `${left}px`;
    box.style.top = `${fits ? below : Math.max(8, spot.top - box.offsetHeight - 8)}px`;
  }

  function hideTip() {
    $("tip").hidden = true;
    if (chosen) chosen.classList.remove("chosen");
  }

  function walk(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hideTip();
    if (!by) return;
    const tokens = [...$("episode").querySelectorAll(".token")];
    const next = tokens[chosen && tokens.includes(chosen) ? tokens.indexOf(chosen) + by : 0];
    if (next) { event.preventDefault(); next.scrollIntoView({ block: "nearest" }); tip(next); }
  }

  function start() {
    if (!DATA.transcripts.length) return;
    fill($("pick-run"), DATA.transcripts.map((one, at) => [at, one.run]));
    $("pick-run").addEventListener("change", pickRun);
    $("pick-task").addEventListener("change", pickTask);
    $("pick-episode").addEventListener("change", pickEpisode);
    $("previous").addEventListener("click", () => move(-1));
    $("next").addEventListener("click", () => move(1));
    $("colour-by").append(Charts.choice(["source", ...Object.keys(SCALES)], "source", (name) => { colourBy = name; show(); }));
    const box = $("episode");
    const onToken = (event) => event.target.classList.contains("token") && tip(event.target);
    box.addEventListener("pointerover", (event) => event.pointerType === "mouse" && onToken(event));
    box.addEventListener("click", onToken);
    box.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hideTip());
    box.addEventListener("keydown", walk);
    document.addEventListener("scroll", hideTip, { passive: true });
    const drafted = DATA.transcripts.findIndex((one) => one.episodes.some((episode) => episode.turns.some((turn) => turn.sources.includes("d"))));
    $("pick-run").value = Math.max(0, drafted);
    pickRun();
  }

  return { start };
})();
