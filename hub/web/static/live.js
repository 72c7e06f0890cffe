// Keeps one part of a page in step with the hub: each server-sent event asks for that part again.
// Without JavaScript the page is complete as it was served.
const part = document.querySelector("[data-live]");
if (part) {
  let asked = false;
  const refresh = async () => {
    if (asked) return;
    asked = true;
    await new Promise((resolve) => setTimeout(resolve, 250));
    asked = false;
    const answer = await fetch(part.dataset.part, { credentials: "same-origin" });
    if (answer.ok) part.innerHTML = await answer.text();
  };
  const source = new EventSource(part.dataset.live);
  source.onmessage = refresh;
  source.addEventListener("run.ended", async () => { await refresh(); source.close(); });
  setInterval(() => {
    for (const clock of part.querySelectorAll("[data-until]")) {
      const left = Math.max(0, Math.round((Date.parse(clock.dataset.until) - Date.now()) / 1000));
      clock.textContent = `${left} s`;
    }
  }, 1000);
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent.trim());
    button.textContent = button.dataset.done;
  });
}
