(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement, button = document.getElementById("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.onclick = () => { root.dataset.theme = dark() ? "light" : "dark"; label(); };
  label();
  const grouped = n => Math.round(n).toString().replace(/\B(?=(\d{3})+$)/g, ",");
  const show = {
    bytes: n => { let u = 0; while (n >= 1024 && u < 4) { n /= 1024; u++; } return (u ? n.toFixed(1) : n) + " " + ["B", "KiB", "MiB", "GiB", "TiB"][u]; },
    pages: grouped, blocks: grouped, share: n => (n * 100).toFixed(n > 0 && n < .05 ? 2 : 1) + " %",
  };
  const [W, L, R] = [960, 76, 14], xs = data.events;
  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const chart = data.charts[svg.dataset.chart], figure = svg.closest("figure");
    if (!chart || xs.length < 2) continue;
    const span = xs[xs.length - 1] - xs[0];
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
    line.setAttribute("class", "cross"); line.setAttribute("y1", 22); line.setAttribute("y2", 230);
    figure.append(tip);
    svg.onpointermove = e => {
      const box = svg.getBoundingClientRect(), x = (e.clientX - box.left) / box.width * W;
      const event = xs[0] + (x - L) / (W - L - R) * span;
      let low = 0, high = xs.length - 1;
      while (low < high) { const mid = (low + high) >> 1; if (xs[mid] < event) low = mid + 1; else high = mid; }
      if (low > 0 && event - xs[low - 1] < xs[low] - event) low--;
      const at = L + (xs[low] - xs[0]) / span * (W - L - R);
      line.setAttribute("x1", at); line.setAttribute("x2", at); svg.append(line);
      tip.replaceChildren();
      const table = document.createElement("table");
      const row = (a, b) => { const r = table.insertRow(), h = document.createElement("th"); h.textContent = a; r.append(h); r.insertCell().textContent = b; };
      row("event", grouped(xs[low]));
      for (const s of chart.series.slice().reverse()) row(s.name, show[chart.unit](s.values[low]));
      tip.append(table); tip.hidden = false;
      const left = svg.offsetLeft || svg.getBoundingClientRect().left - figure.getBoundingClientRect().left;
      const px = left + at / W * box.width;
      tip.style.left = Math.min(px + 14, figure.clientWidth - tip.offsetWidth - 8) + "px";
      if (px + 14 + tip.offsetWidth > figure.clientWidth) tip.style.left = Math.max(8, px - tip.offsetWidth - 14) + "px";
      tip.style.top = svg.getBoundingClientRect().top - figure.getBoundingClientRect().top + 18 + "px";
    };
    svg.onpointerleave = () => { tip.hidden = true; line.remove(); };
  }
})();
