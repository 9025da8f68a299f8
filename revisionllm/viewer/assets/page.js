"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const durationS = Number($("main").dataset.durationS);
  const film = $(".film");
  const zoom = { panel: $(".zoom"), lane: $(".zoom-lane"), axis: $(".zoom-axis") };
  const current = { row: null, span: null, startS: 0, endS: 0, halfWidthS: 0 };

  // Must write the same as `clock` in axis.py.
  function clock(seconds, decimals) {
    const scale = 10 ** decimals;
    const units = Math.floor(seconds * scale + 0.5);
    const whole = Math.floor(units / scale);
    const pad = (n) => String(n).padStart(2, "0");
    const hours = Math.floor(whole / 3600);
    const text = `${hours}:${pad(Math.floor(whole / 60) % 60)}:${pad(whole % 60)}`;
    return decimals ? `${text}.${units % scale}` : text;
  }

  // --- the film -------------------------------------------------------------------------------
  function showHint(show) {
    $(".hint").hidden = !show;
    $(".pick").hidden = !show;
  }

  function playFrom(startS) {
    if (!film.getAttribute("src")) return;
    const start = () => {
      film.currentTime = startS;
      film.play().catch(() => {});  // refused autoplay leaves the film paused at that second
    };
    if (film.readyState >= 1) start();
    else film.addEventListener("loadedmetadata", start, { once: true });
  }

  function movePlayheads() {
    if (film.readyState === 0) return;
    const timeS = film.currentTime;
    const left = `${100 * timeS / durationS}%`;
    $$(".overview .playhead").forEach((line) => { line.style.left = left; });
    const inZoom = $(".playhead", zoom.lane);
    if (inZoom) inZoom.style.left = `${zoomPercent(timeS)}%`;
    const loop = $("[name=loop]");
    if (loop.checked && current.span && !film.paused
        && (timeS >= current.endS || timeS < current.startS - 1)) film.currentTime = current.startS;
  }

  function addPlayhead(lane) {
    const line = document.createElement("i");
    line.className = "playhead";  // shown once it has a place
    lane.append(line);
  }

  film.addEventListener("error", () => showHint(true));
  film.addEventListener("loadedmetadata", () => showHint(false));
  // The error may have come before this script.
  if (film.error || film.networkState === HTMLMediaElement.NETWORK_NO_SOURCE) showHint(true);
  // timeupdate comes four times a second: too coarse for repeating a short event.
  const follow = () => {
    movePlayheads();
    if (!film.paused) requestAnimationFrame(follow);
  };
  film.addEventListener("play", follow);
  film.addEventListener("seeked", movePlayheads);
  film.addEventListener("timeupdate", movePlayheads);
  $$(".overview .lane").forEach(addPlayhead);
  $(".pick input").addEventListener("change", (event) => {
    if (!event.target.files.length) return;
    film.src = URL.createObjectURL(event.target.files[0]);
    film.load();
  });

  // --- the zoomed lane --------------------------------------------------------------------------
  const zoomStartS = () => (current.startS + current.endS) / 2 - current.halfWidthS;
  const zoomPercent = (timeS) => 100 * (timeS - zoomStartS()) / (2 * current.halfWidthS);

  function zoomStep() {
    const steps = [
      0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200,
    ];
    return steps.find((step) => 2 * current.halfWidthS / step <= 4.5) ?? 86400;
  }

  function drawZoom() {
    zoom.axis.replaceChildren();
    zoom.lane.replaceChildren();
    const step = zoomStep();
    const endS = Math.min(durationS, zoomStartS() + 2 * current.halfWidthS);
    for (let i = Math.max(0, Math.ceil(zoomStartS() / step)); i * step <= endS; i += 1) {
      const left = `${zoomPercent(i * step)}%`;
      const line = document.createElement("i");
      line.className = "grid-line";
      line.style.left = left;
      zoom.lane.append(line);
      const label = document.createElement("span");
      label.className = "tick";
      label.style.setProperty("--at", left);
      label.textContent = clock(i * step, step < 1 ? 1 : 0);
      zoom.axis.append(label);
    }
    $$(".span", current.row).forEach((original) => {
      const start = zoomPercent(Number(original.dataset.startS));
      const end = zoomPercent(Number(original.dataset.endS));
      if (end < 0 || start > 100) return;
      const span = original.cloneNode(true);
      span.style.left = `${start}%`;
      span.style.width = `${end - start}%`;
      span.tabIndex = -1;  // the same spans are reached by keyboard in the timeline above
      zoom.lane.append(span);
    });
    addPlayhead(zoom.lane);
    movePlayheads();
  }

  function zoomBy(factor) {
    if (!current.row) return;
    const narrowestS = Math.max(1, 0.6 * (current.endS - current.startS));
    const wantedS = Math.max(narrowestS, current.halfWidthS * factor);
    current.halfWidthS = Math.min(durationS, wantedS);
    drawZoom();
  }

  // --- choosing ---------------------------------------------------------------------------------
  function selectRow(row) {
    if (current.row) current.row.classList.remove("current");
    $$(".card.current").forEach((card) => card.classList.remove("current"));
    current.row = row;
    row.classList.add("current");
    document.getElementById(`card-${row.dataset.query}`).classList.add("current");
  }

  function markSpan(startS, endS) {
    $$(".overview .span.current").forEach((span) => span.classList.remove("current"));
    current.span = current.row && $$(".span", current.row).find(
      (span) => Number(span.dataset.startS) === startS && Number(span.dataset.endS) === endS,
    );
    if (current.span) current.span.classList.add("current");
  }

  // `button` is any element with data-query, data-start-s, data-end-s (a mark, a frame or a line).
  function show(button) {
    const startS = Number(button.dataset.startS);
    const endS = Number(button.dataset.endS);
    selectRow($(`.row[data-query="${button.dataset.query}"]`));
    Object.assign(current, { startS, endS, halfWidthS: Math.max(10, 1.5 * (endS - startS)) });
    markSpan(startS, endS);
    zoom.panel.hidden = false;
    $(".zoom-sentence").textContent = $(".text", current.row).textContent;
    $(".zoom-facts").textContent = current.span ? current.span.title : "";
    drawZoom();
  }

  function play(button) {
    show(button);
    $(".stage").scrollIntoView({ block: "nearest" });
    playFrom(Number(button.dataset.atS ?? button.dataset.startS));
  }

  function openCard(row) {
    const best = $(".span", row);
    if (best) show(best);
    else {
      markSpan(null, null);
      selectRow(row);
      zoom.panel.hidden = true;
    }
    document.getElementById(`card-${row.dataset.query}`).scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-start-s]");
    const label = event.target.closest(".label");
    const zoomButton = event.target.closest("[data-zoom]");
    const lane = event.target.closest(".lane");
    if (button) play(button);
    else if (label) openCard(label.closest(".row"));
    else if (zoomButton) zoomBy(zoomButton.dataset.zoom === "in" ? 0.5 : 2);
    else if (lane) playAtPointer(lane, event.clientX);
  });

  function playAtPointer(lane, clientX) {
    const box = lane.getBoundingClientRect();
    const part = (clientX - box.left) / box.width;
    const zoomedS = zoomStartS() + part * 2 * current.halfWidthS;
    const timeS = lane === zoom.lane ? zoomedS : part * durationS;
    playFrom(Math.min(durationS, Math.max(0, timeS)));
  }

  // --- keyboard: one tab stop per row, arrow keys inside and between the rows --------------------
  const rowSpans = (row) => $$(".span", row).sort(
    (a, b) => Number(a.dataset.startS) - Number(b.dataset.startS),
  );

  function focusSpan(span) {
    $$(".span", span.closest(".row")).forEach((other) => { other.tabIndex = -1; });
    span.tabIndex = 0;
    span.focus();
  }

  function stepInRow(span, step) {
    const spans = rowSpans(span.closest(".row"));
    const next = spans[spans.indexOf(span) + step];
    if (next) focusSpan(next);
  }

  function stepRow(span, step) {
    const rows = $$(".row").filter((row) => $(".span", row));
    const next = rows[rows.indexOf(span.closest(".row")) + step];
    if (next) focusSpan($(".span[tabindex='0']", next));
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const span = document.activeElement.closest(".overview .span");
    const moves = {
      ArrowLeft: () => stepInRow(span, -1), ArrowRight: () => stepInRow(span, 1),
      ArrowUp: () => stepRow(span, -1), ArrowDown: () => stepRow(span, 1),
    };
    if (span && moves[event.key]) {
      moves[event.key]();
      event.preventDefault();
    } else if (event.key === "+" || event.key === "=") zoomBy(0.5);
    else if (event.key === "-") zoomBy(2);
  });
})();
