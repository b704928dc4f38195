// Trials: what is pointed at, focused or tapped is lit in all figures and tables of its size; what the table says of it,
// and its samples, are told beside it. The text comes from the page as text: nothing is read as HTML.
const tip = document.body.appendChild(Object.assign(document.createElement("div"), { id: "tip", hidden: true, ariaHidden: "true" }));
const NEAR = 24;  // pixels from a trial that still point at it
let lit = [], shown = null, kept = false;
const release = () => {
  lit.forEach((element) => element.classList.remove("lit"));
  [lit, shown, kept, tip.hidden] = [[], null, false, true];
};
const light = (size, trial) => {
  release();
  lit = [...size.querySelectorAll(`[data-trial="${trial}"]`)];
  lit.forEach((element) => element.classList.add("lit"));
};
const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
// Below its trial, or above where there is more room; inside the window from left to right.
const place = (at) => {
  const { width, height } = tip.getBoundingClientRect(), wide = document.documentElement.clientWidth;
  const below = innerHeight - at.bottom > height + 8 || at.top < height + 8;
  tip.style.left = `${scrollX + Math.max(8, Math.min(at.left + at.width / 2 - width / 2, wide - width - 8))}px`;
  tip.style.top = `${scrollY + (below ? at.bottom + 6 : at.top - height - 6)}px`;
};
const show = (size, spot) => {
  if (shown === spot) return;
  const trial = spot.dataset.trial, row = size.querySelector(`table.trials tr[data-trial="${trial}"]`);
  const names = [...row.closest("table").tHead.rows[0].cells].map((cell) => cell.textContent);
  const list = document.createElement("dl");
  [...row.cells].forEach((cell, i) => {
    if (cell.textContent) list.append(make("dt", names[i]), make("dd", cell.textContent));
  });
  light(size, trial);
  shown = spot;
  tip.replaceChildren(list);
  const samples = size.querySelector(`.gallery [data-trial="${trial}"] img`);
  if (samples) tip.append(samples.cloneNode());
  tip.hidden = false;
  place(spot.lastElementChild.getBoundingClientRect());
  const box = row.closest(".long");  // the row comes into sight of its box, and the page stays where it is
  box.scrollTop += row.getBoundingClientRect().top - box.getBoundingClientRect().top - box.clientHeight / 2;
};
for (const size of document.querySelectorAll("section.size")) {
  for (const svg of size.querySelectorAll("svg:has(.spot)")) {
    const spots = [...svg.querySelectorAll(".spot")];
    const near = ({ clientX, clientY }) => {
      const far = spots.map((spot) => {
        const { left, top, width, height } = spot.lastElementChild.getBoundingClientRect();
        return Math.hypot(left + width / 2 - clientX, top + height / 2 - clientY);
      });
      const least = Math.min(...far);
      return least < NEAR ? spots[far.indexOf(least)] : null;
    };
    const reach = (spot) => spots.forEach((other) => other.setAttribute("tabindex", other === spot ? 0 : -1));
    for (const spot of spots) {  // the browser's own tip, which has no samples, would cover ours
      const title = spot.querySelector("title");
      spot.setAttribute("aria-label", title.textContent);
      title.remove();
      spot.addEventListener("focus", () => { reach(spot); show(size, spot); });
      spot.addEventListener("blur", () => { if (!kept) release(); });
    }
    reach(spots[0]);
    svg.addEventListener("pointermove", (event) => {
      if (kept || event.pointerType === "touch") return;
      const spot = near(event);
      if (spot) show(size, spot); else release();
    });
    svg.addEventListener("pointerleave", (event) => { if (!kept && event.pointerType !== "touch") release(); });
    svg.addEventListener("click", (event) => {
      const spot = near(event), again = kept && spot === shown;
      if (!spot || again) return release();
      reach(spot);
      show(size, spot);
      kept = true;
    });
    svg.addEventListener("keydown", (event) => {
      const at = spots.indexOf(document.activeElement), last = spots.length - 1;
      const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
      if (to !== undefined) spots[Math.max(0, Math.min(to, last))].focus();
      else if (event.key === "Enter") kept = true;
      else return;
      event.preventDefault();
    });
  }
  for (const other of size.querySelectorAll("tr[data-trial], figure[data-trial]")) {
    other.addEventListener("pointerenter", () => { if (!kept) light(size, other.dataset.trial); });
    other.addEventListener("pointerleave", () => { if (!kept) release(); });
  }
  for (const hint of size.querySelectorAll(".hint")) hint.hidden = !size.querySelector(".spot");
}
addEventListener("keydown", (event) => { if (event.key === "Escape") release(); });
addEventListener("click", (event) => { if (!event.target.closest("svg, table")) release(); });
