// Keeps the server-rendered page fresh: fragments are fetched again, charts poll their series.
"use strict";

const REFRESH_MILLISECONDS = 2000;
const COLOURS = ["#2f81f7", "#e5762f", "#2da44e", "#a371f7", "#d4a72c", "#db61a2", "#39c5cf", "#8b949e"];

// One bad answer must not stop the page: say that the server is away and try again.
function setOffline(isOffline) {
  document.getElementById("offline").hidden = !isOffline;
}

async function refreshFragment(element) {
  const response = await fetchSignedIn(element.dataset.refresh, { headers: { accept: "text/html" } });
  if (!response.ok) throw new Error(`${response.status}`);
  const html = await response.text();
  if (element.dataset.last !== html) {
    element.dataset.last = html;
    element.innerHTML = html;
  }
}

// uPlot rounds to three decimals, which would show a learning rate's ticks as zeros.
function tickText(value) {
  if (value === null || value === undefined) return "";
  const rounded = Number(value.toPrecision(4));
  if (rounded !== 0 && Math.abs(rounded) < 1e-3) return rounded.toExponential();
  return rounded.toLocaleString();
}

function chartOptions(labels, width) {
  const ink = getComputedStyle(document.body).color;
  const axis = { stroke: ink, grid: { stroke: "rgba(128,128,128,.18)" }, ticks: { stroke: "rgba(128,128,128,.3)" } };
  return {
    width,
    height: 220,
    scales: { x: { time: false } },
    axes: [{ ...axis, label: "step", labelSize: 18, size: 34 }, { ...axis, size: 56, values: (_, ticks) => ticks.map(tickText) }],
    series: [
      { label: "step" },
      ...labels.map((label, index) => ({
        label,
        stroke: COLOURS[index % COLOURS.length],
        width: 1.6,
        spanGaps: true,
        points: { size: 4 },
        value: (_, value) => (value === null || value === undefined ? "–" : Number(value).toPrecision(4)),
      })),
    ],
  };
}

// Series of several jobs have steps of their own; uPlot needs one common x axis.
function joinSeries(allPoints) {
  const steps = [...new Set(allPoints.flatMap((points) => points.map((point) => point.step)))].sort((a, b) => a - b);
  const columns = allPoints.map((points) => {
    const byStep = new Map(points.map((point) => [point.step, point.value]));
    return steps.map((step) => byStep.get(step) ?? null);
  });
  return [steps, ...columns];
}

async function fetchPoints(series) {
  const query = new URLSearchParams({ name: series.name, max_points: "400" });
  const response = await fetchSignedIn(`/v1/jobs/${encodeURIComponent(series.job)}/metrics?${query}`);
  if (!response.ok) throw new Error(`${response.status}`);
  const body = await response.json();
  const found = body.data.find((candidate) => candidate.name === series.name);
  return found ? found.steps.map((step, index) => ({ step, value: found.values[index] })) : [];
}

async function refreshChart(element) {
  const wanted = JSON.parse(element.dataset.series);
  const allPoints = await Promise.all(wanted.map(fetchPoints));
  const shown = wanted.map((series, index) => ({ ...series, points: allPoints[index] })).filter((s) => s.points.length);
  element.dataset.points = String(shown.reduce((sum, series) => sum + series.points.length, 0));
  const target = element.querySelector(".plot");
  if (!shown.length) return;
  const key = shown.map((series) => series.job + series.name).join("|");
  const data = joinSeries(shown.map((series) => series.points));
  if (element.plot && element.plotKey === key) {
    element.plot.setData(data);
    return;
  }
  target.textContent = "";
  element.plot = new uPlot(chartOptions(shown.map((s) => s.label), target.clientWidth || 340), data, target);
  element.plotKey = key;
}

// The message of this one event is the fingerprint and nothing else.
function eventText(event) {
  if (event.type !== "teacher.attested") return event.message;
  return `The teacher attested the fingerprint ${event.message.slice(0, 16)}.`;
}

function appendEvent(list, event) {
  const item = document.createElement("li");
  item.className = event.level === "error" ? "error-level" : event.level;
  for (const [text, style] of [
    [new Date(event.created_at).toLocaleTimeString(), "quiet"],
    [event.type, "mono"],
    [eventText(event), ""],
  ]) {
    const cell = document.createElement("span");
    cell.textContent = text;
    cell.className = style;
    item.append(cell);
  }
  list.prepend(item);
}

// Server-sent events by fetch: EventSource cannot send the header with the token.
async function* readMessages(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const message = { event: "message", data: "", id: "" };
      for (const line of block.split("\n")) {
        const [, name, text] = line.match(/^([^:]*): ?(.*)$/) ?? [];
        if (name) message[name] = text;
      }
      if (message.data) yield message;
    }
  }
}

async function followEvents(list) {
  let last = "";
  let isOver = false;
  while (!isOver) {
    try {
      const headers = last ? { "last-event-id": last } : {};
      const response = await fetchSignedIn(list.dataset.stream, { headers });
      if (response.status >= 400 && response.status < 500) return; // asking again would not help
      for await (const message of response.ok ? readMessages(response) : []) {
        last = message.id || last;
        if (message.event === "message") appendEvent(list, JSON.parse(message.data));
        isOver ||= message.event === "done"; // the server ends the stream with it
      }
    } catch {
      // The connection broke: go on after the last event.
    }
    if (!isOver) await new Promise((resolve) => setTimeout(resolve, REFRESH_MILLISECONDS));
  }
}

async function tick() {
  if (!document.hidden) {
    const work = [
      ...[...document.querySelectorAll("[data-refresh]")].map(refreshFragment),
      ...[...document.querySelectorAll("[data-series]")].map(refreshChart),
    ];
    const outcomes = await Promise.allSettled(work);
    setOffline(outcomes.some((outcome) => outcome.status === "rejected"));
  }
  setTimeout(tick, REFRESH_MILLISECONDS);
}

whenSignedIn(() => {
  document.querySelectorAll("[data-stream]").forEach(followEvents);
  tick();
});
