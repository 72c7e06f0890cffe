// Keeps the changing part of a run's page in step with the hub: each server-sent event asks for that part again.
// Without JavaScript the page is complete as it was served.
const part = document.getElementById("part");
const connection = document.getElementById("connection");
const spoken = document.getElementById("spoken");
const told = () => part.querySelector("[data-rounds]").dataset;

const show = (html) => {
  const open = new Set([...part.querySelectorAll("details[open][id]")].map((each) => each.id));
  const places = new Map([...part.querySelectorAll("[data-keep]")].map((each) => [each.dataset.keep, each.scrollTop]));
  const focused = document.activeElement && part.contains(document.activeElement) ? document.activeElement : null;
  const back = focused && (focused.dataset.keep ? `[data-keep="${focused.dataset.keep}"]`
    : focused.closest("details[id]") ? `#${focused.closest("details[id]").id} > summary` : null);
  const before = { ...told() };
  part.innerHTML = html;
  for (const each of part.querySelectorAll("details[id]")) each.open = open.has(each.id);
  for (const each of part.querySelectorAll("[data-keep]")) each.scrollTop = places.get(each.dataset.keep) || 0;
  if (back) part.querySelector(back)?.focus({ preventScroll: true });
  const now = told();
  if (now.rounds !== before.rounds || now.state !== before.state) {
    spoken.textContent = `${spoken.dataset.round} ${now.rounds}, ${now.state}`;
  }
  count();
};

const count = () => {
  for (const clock of part.querySelectorAll("[data-until]")) {
    const left = Math.round((Date.parse(clock.dataset.until) - Date.now()) / 1000);
    const seconds = String(Math.abs(left) % 60).padStart(2, "0");
    clock.textContent = `${left < 0 ? "+" : ""}${Math.floor(Math.abs(left) / 60)}:${seconds}`;
    clock.classList.toggle("late", left < 0);
  }
};

let asking = false;
let again = false;
const refresh = async () => {
  if (asking) { again = true; return; }
  asking = true;
  do {
    again = false;
    try {
      const answer = await fetch(part.dataset.part, { credentials: "same-origin" });
      if (answer.ok) show(await answer.text());
    } catch {
      state(false); // the hub is away; the stream comes back by itself and asks again
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
  } while (again);
  asking = false;
};

const state = (live) => {
  connection.hidden = false;
  connection.classList.toggle("running", live);
  connection.classList.toggle("offline", !live);
  connection.textContent = live ? connection.dataset.liveWord : connection.dataset.lostWord;
};

if (part && part.dataset.over === "no") {
  const source = new EventSource(`${part.dataset.live}?after=${part.dataset.after}`);
  source.onopen = () => state(true);
  source.onerror = () => state(false);
  source.onmessage = refresh;
  source.addEventListener("over", async () => {
    source.close();
    await refresh();
    connection.hidden = true;
  });
  setInterval(count, 1000);
  count();
}
