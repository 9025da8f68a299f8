"use strict";
(() => {
  const film = document.querySelector(".film");
  const playing = document.querySelector(".playing");
  const links = [...document.querySelectorAll(".hit")];
  let startS = 0;

  const seek = () => {
    film.currentTime = startS;
    film.play().catch(() => {});  // refused autoplay leaves the film paused at that second
  };

  function play(link) {
    links.forEach((other) => other.classList.toggle("current", other === link));
    links.forEach((other) => other.removeAttribute("aria-current"));
    link.setAttribute("aria-current", "true");
    startS = Number(link.dataset.startS);
    const url = link.href.split("#")[0];
    playing.textContent = link.querySelector(".where").textContent;
    if (film.src === url && film.readyState >= 1) {
      seek();
      return;
    }
    film.src = url;
    film.addEventListener("loadedmetadata", seek, { once: true });
    film.load();
  }

  film.addEventListener("error", () => {
    if (film.getAttribute("src")) {
      playing.textContent = "The film is not there, or this browser cannot play it.";
    }
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest(".hit");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    play(link);
  });
})();
