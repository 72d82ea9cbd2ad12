document.querySelectorAll("table.sortable").forEach((table) => {
  const body = table.tBodies[0];
  table.querySelectorAll("th button").forEach((button, column) => {
    button.addEventListener("click", () => {
      const head = button.parentElement;
      const down = head.getAttribute("aria-sort") !== "descending";
      table.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value ?? "";
      const less = (a, b) => {
        if (a === "" || b === "") return (a === "") - (b === "");  // what has no value goes last
        const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
        return down ? -order : order;
      };
      [...body.rows].sort((a, b) => less(key(a), key(b))).forEach((row) => body.append(row));
    });
  });
});

// All clips of a player run together: the first one leads, and the others follow its time.
document.querySelectorAll(".player").forEach((player) => {
  const clips = [...player.querySelectorAll("video")], lead = clips[0];
  const controls = player.querySelector(".controls");
  const [button, seek, time] = ["button", "input", "output"].map((name) => controls.querySelector(name));
  const show = () => {
    seek.max = lead.duration || 1;
    seek.value = lead.currentTime;
    time.value = `${lead.currentTime.toFixed(2)} s`;
    button.textContent = lead.paused ? "Play" : "Pause";
  };
  const move = (seconds) => { clips.forEach((clip) => { clip.currentTime = seconds; }); show(); };
  const play = () => clips.forEach((clip) => clip.play());
  const pause = () => { clips.forEach((clip) => clip.pause()); move(lead.currentTime); };
  const follow = () => {
    show();
    if (lead.paused) return;
    clips.forEach((clip) => {
      if (Math.abs(clip.currentTime - lead.currentTime) > 0.1) clip.currentTime = lead.currentTime;
    });
    requestAnimationFrame(follow);
  };
  clips.forEach((clip) => { clip.controls = clip.loop = false; });
  controls.hidden = false;
  button.addEventListener("click", () => (lead.paused ? play() : pause()));
  seek.addEventListener("input", () => { const seconds = seek.valueAsNumber; pause(); move(seconds); });
  lead.addEventListener("play", follow);
  lead.addEventListener("ended", () => { move(0); play(); });
  ["loadedmetadata", "pause", "timeupdate"].forEach((event) => lead.addEventListener(event, show));
  show();
});

document.querySelectorAll(".wipe input").forEach((input) => {
  input.addEventListener("input", () => input.parentElement.style.setProperty("--at", `${input.value}%`));
});
