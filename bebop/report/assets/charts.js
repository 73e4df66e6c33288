"use strict";
// Draws the charts of the page's data with plotly.js, in the colours of the style sheet.
const DATA = JSON.parse(document.getElementById("data").textContent);

const Charts = (() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const translucent = (hex, share) => hex + Math.round(share * 255).toString(16).padStart(2, "0");
  // plotly reads a little HTML in its texts; ours are plain.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const isPhone = () => matchMedia("(max-width: 640px)").matches;
  const isTouch = matchMedia("(hover: none)").matches;

  class Chart {
    constructor(figure, spec) {
      this.spec = spec;
      this.plot = figure.querySelector(".plot");
      this.view = spec.views.length ? spec.views[0] : null;
      this.hidden = new Set();
      this.controls = figure.querySelector(".controls");
      this.addControls();
    }

    seen() {
      return this.spec.traces.filter((trace) => trace.view === null || trace.view === this.view);
    }

    addControls() {
      if (this.spec.views.length > 1) {
        this.controls.append(choice(this.spec.views, this.view, (view) => {
          this.view = view;
          this.addLegend();
          this.draw();
        }));
      }
      this.legend = document.createElement("div");
      this.legend.className = "legend";
      this.controls.append(this.legend);
      this.addLegend();
    }

    addLegend() {
      const names = new Map();
      this.seen().forEach((trace) => names.has(trace.name) || names.set(trace.name, trace));
      this.legend.replaceChildren(...[...names.values()].map((trace) => this.legendItem(trace)));
      this.legend.hidden = names.size < 2;
    }

    legendItem(trace) {
      const item = document.createElement("button");
      item.type = "button";
      item.setAttribute("aria-pressed", String(!this.hidden.has(trace.name)));
      const dot = document.createElement("i");
      dot.className = trace.form === "bars" ? "dot square" : "dot";
      dot.dataset.colour = trace.colour;
      if (trace.faint && trace.form === "bars") dot.classList.add("faint");
      item.append(dot, trace.name);
      item.addEventListener("click", () => {
        if (!this.hidden.delete(trace.name)) this.hidden.add(trace.name);
        item.setAttribute("aria-pressed", String(!this.hidden.has(trace.name)));
        this.draw();
      });
      return item;
    }

    draw() {
      const shown = this.seen().filter((trace) => !this.hidden.has(trace.name));
      const traces = shown.flatMap((trace) => [...band(trace), this.mark(trace)]);
      Plotly.react(this.plot, traces, this.layout(shown), {
        responsive: true,
        displaylogo: false,
        displayModeBar: isTouch ? false : "hover",
        modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
        toImageButtonOptions: { filename: this.spec.id, scale: 3 },
      });
    }

    mark(trace) {
      const lying = this.spec.horizontal;
      const main = colour(trace.colour);
      const names = trace.x.map((one) => (typeof one === "string" ? plain(one) : one));
      const mark = {
        name: plain(trace.name),
        x: lying ? trace.y : names,
        y: lying ? names : trace.y,
        showlegend: false,
        hoverlabel: { namelength: -1 },
      };
      if (trace.notes) { mark.text = trace.notes.map(plain); mark.hoverinfo = "x+y+text+name"; }
      if (trace.form === "bars") return this.bars(trace, mark, main);
      mark.type = "scatter";
      mark.mode = { line: "lines", dots: "markers", "line+dots": "lines+markers" }[trace.form];
      mark.connectgaps = false;
      mark.line = { color: main, width: trace.faint ? 1.3 : 2.2, dash: trace.dashed ? "dash" : "solid" };
      if (trace.faint || trace.dashed) mark.opacity = trace.form === "dots" ? 0.35 : 0.75;
      mark.marker = { color: main, size: trace.sizes ? trace.sizes.map((share) => 6 + 12 * Math.sqrt(share)) : 5.5, opacity: 1, line: { width: 0 } };
      if (trace.faint && !trace.notes) mark.hoverinfo = "skip";
      if (trace.low && trace.form !== "line") mark.error_y = whiskers(trace, translucent(main, 0.65));
      return mark;
    }

    bars(trace, mark, main) {
      mark.type = "bar";
      mark.orientation = this.spec.horizontal ? "h" : "v";
      mark.marker = { color: trace.faint ? translucent(main, 0.45) : main, line: { width: 0 }, cornerradius: this.spec.stacked ? 0 : 3 };
      if (trace.low) mark[this.spec.horizontal ? "error_x" : "error_y"] = whiskers(trace, colour("ink"));
      return mark;
    }

    layout(shown) {
      const { spec } = this;
      const isBars = shown.some((trace) => trace.form === "bars");
      const isCloud = shown.some((trace) => trace.notes);
      const layout = {
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("soft") },
        margin: { l: 52, r: 10, t: 8, b: 44 },
        height: height(spec),
        barmode: spec.stacked ? "stack" : "group",
        bargap: spec.horizontal ? 0.3 : gap(this.plot, shown),
        bargroupgap: 0.12,
        hovermode: isBars || isCloud ? "closest" : "x unified",
        dragmode: isTouch ? false : "zoom",
        hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink"), size: 12 }, align: "left" },
        showlegend: false,
        xaxis: axis(spec.x),
        yaxis: axis(spec.y),
        shapes: spec.level === null ? [] : [line(spec)],
      };
      if (spec.horizontal) layout.yaxis.autorange = "reversed";
      return layout;
    }
  }

  // Few bars on a wide screen would be slabs.
  function gap(plot, shown) {
    const bars = shown.filter((trace) => trace.form === "bars");
    const groups = new Set(bars.flatMap((trace) => trace.x)).size || 1;
    const wanted = 64 * bars.length * groups;
    return Math.min(0.8, Math.max(0.3, 1 - wanted / Math.max(1, plot.clientWidth - 60)));
  }

  function height(spec) {
    if (spec.horizontal) return Math.max(170, 66 + 34 * spec.y.categories.length);
    return isPhone() ? 250 : 300;
  }

  function band(trace) {
    if (!trace.low || trace.form !== "line") return [];
    return [{
      type: "scatter",
      mode: "lines",
      x: [...trace.x, ...[...trace.x].reverse()],
      y: [...trace.high, ...[...trace.low].reverse()],
      fill: "toself",
      fillcolor: translucent(colour(trace.colour), 0.15),
      line: { width: 0 },
      hoverinfo: "skip",
      showlegend: false,
    }];
  }

  function whiskers(trace, ink) {
    return {
      type: "data",
      symmetric: false,
      array: trace.high.map((high, at) => high - trace.y[at]),
      arrayminus: trace.low.map((low, at) => trace.y[at] - low),
      color: ink,
      thickness: 1.3,
      width: 3,
    };
  }

  function axis(spec) {
    const made = {
      title: { text: plain(spec.title), standoff: 8, font: { size: 12 } },
      gridcolor: colour("grid"),
      linecolor: colour("line"),
      zeroline: false,
      automargin: true,
      fixedrange: isTouch,
      tickfont: { size: 11 },
    };
    if (spec.percent) made.tickformat = ".0%";
    if (spec.span) made.range = spec.span;
    if (spec.span && spec.span.includes(null)) { delete made.range; made.rangemode = "tozero"; }
    if (spec.categories.length) {
      made.type = "category";
      made.categoryorder = "array";
      made.categoryarray = spec.categories.map(plain);
      made.showgrid = false;
      made.ticktext = spec.categories.map((name) => shortened(plain(name), isPhone() ? 18 : 34));
      made.tickvals = made.categoryarray;
    }
    return made;
  }

  function shortened(text, size) {
    return text.length <= size ? text : `${text.slice(0, size - 1)}…`;
  }

  function line(spec) {
    const across = { x0: 0, x1: 1, xref: "paper", y0: spec.level, y1: spec.level };
    const along = { y0: 0, y1: 1, yref: "paper", x0: spec.level, x1: spec.level };
    return { type: "line", layer: "below", line: { color: colour("soft"), width: 1 }, ...(spec.horizontal ? along : across) };
  }

  function choice(names, first, onPick) {
    const group = document.createElement("div");
    group.className = "choice";
    group.setAttribute("role", "group");
    names.forEach((name) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.setAttribute("aria-pressed", String(name === first));
      button.addEventListener("click", () => {
        group.querySelectorAll("button").forEach((one) => one.setAttribute("aria-pressed", String(one === button)));
        onPick(name);
      });
      group.append(button);
    });
    return group;
  }

  function start() {
    const charts = [...document.querySelectorAll("figure[data-chart]")].map(
      (figure) => new Chart(figure, DATA.charts[figure.dataset.chart]),
    );
    // One after the other, so that the page can be read and scrolled meanwhile.
    const pending = [...charts];
    const next = () => {
      const chart = pending.shift();
      if (!chart) { document.documentElement.dataset.drawn = "yes"; return; }
      chart.draw();
      setTimeout(next, 0);
    };
    next();
    Theme.onChange(() => charts.forEach((chart) => chart.draw()));
    matchMedia("(max-width: 640px)").addEventListener("change", () => charts.forEach((chart) => chart.draw()));
  }

  return { start, choice };
})();
