// The list of sessions, with pictures that stay up to date while the page is looked at.
import * as api from './api.js';
import { $, h, settings } from './dom.js';
import { loginForm } from './login.js';

const listEvery = 3000;
const pictureEvery = 2000;

const main = $('main');
const cards = new Map(); // by session ID
let grid;
let timer;
let asking = false;

const states = {
    starting: 'starting', running: 'running', degraded: 'degraded', stopping: 'stopping', failed: 'failed',
};

class Card {
    constructor(s) {
        this.img = h('img', { alt: '', hidden: true, decoding: 'async' });
        this.title = h('span', { class: 'title' });
        this.state = h('span', { class: 'state' });
        this.detail = h('span', { class: 'detail' });
        this.element = h('li', {}, h('a', { class: 'card', href: api.desktopURL(s.name) },
            h('span', { class: 'picture' }, this.img), h('span', { class: 'line' }, this.title, this.state), this.detail));
        this.etag = null;
        this.seen = true; // until the observer says otherwise
        this.update(s);
    }

    update(s) {
        this.session = s;
        this.title.textContent = s.name;
        this.state.textContent = states[s.state] ?? s.state;
        this.state.dataset.state = s.state;
        this.detail.textContent = [s.profile !== s.name ? s.profile : '', `${s.width} × ${s.height}`, s.user, age(s.created)]
            .filter(Boolean).join(' · ');
    }

    async refresh() {
        if (!this.seen || this.busy || this.session.state === 'starting') {
            return;
        }
        this.busy = true;
        try {
            const width = Math.round(this.element.clientWidth * Math.min(devicePixelRatio, 2)) || 480;
            const path = `api/sessions/${encodeURIComponent(this.session.name)}/thumbnail.png?w=${width}`;
            const response = await api.get(path); // the browser asks with the ETag it knows
            const etag = response.headers.get('ETag');
            if (etag !== this.etag) {
                const url = URL.createObjectURL(await response.blob());
                const old = this.img.src;
                this.img.src = url;
                await this.img.decode();
                this.img.hidden = false;
                this.etag = etag;
                if (old) {
                    URL.revokeObjectURL(old);
                }
            }
        } catch {
            // No picture now; the list itself says when the gateway is gone. The next round tries again.
        } finally {
            this.busy = false;
        }
    }

    remove() {
        this.element.remove();
        observer.unobserve(this.element);
        if (this.img.src) {
            URL.revokeObjectURL(this.img.src);
        }
    }
}

const observer = new IntersectionObserver((entries) => {
    for (const e of entries) {
        for (const card of cards.values()) {
            if (card.element === e.target) {
                card.seen = e.isIntersecting;
                card.refresh();
            }
        }
    }
}, { rootMargin: '100px' });

const units = [[86400, 'day'], [3600, 'hour'], [60, 'minute']];
const ago = new Intl.RelativeTimeFormat('en', { numeric: 'always' });

function age(created) {
    const seconds = (Date.now() - Date.parse(created)) / 1000;
    for (const [n, unit] of units) {
        if (seconds >= n) {
            return ago.format(-Math.floor(seconds / n), unit);
        }
    }
    return 'just now';
}

function showList(doc) {
    main.setAttribute('aria-busy', 'false');
    $('logout').hidden = false;
    if (!grid?.isConnected) {
        grid = h('ul', { class: 'grid', 'aria-label': 'Sessions' });
        main.replaceChildren(grid);
    }
    const ids = new Set(doc.sessions.map((s) => s.id));
    for (const [id, card] of cards) {
        if (!ids.has(id)) {
            card.remove();
            cards.delete(id);
        }
    }
    for (const s of doc.sessions) {
        const card = cards.get(s.id);
        if (card) {
            card.update(s);
            continue;
        }
        const made = new Card(s);
        cards.set(s.id, made);
        grid.append(made.element);
        observer.observe(made.element);
    }
    const empty = main.querySelector('.empty');
    if (cards.size > 0) {
        empty?.remove();
    } else if (!empty) {
        main.append(h('div', { class: 'empty' },
            h('p', {}, doc.admin ? 'No session is running.' : 'None of your sessions is running.'),
            h('p', { class: 'quiet' }, 'Start one with ', h('code', {}, 'berth up xfce'), '. It appears here by itself.')));
    }
}

function showLogin(message) {
    for (const card of cards.values()) {
        card.remove();
    }
    cards.clear();
    grid = null;
    $('logout').hidden = true;
    main.setAttribute('aria-busy', 'false');
    asking = true;
    const { form, focus } = loginForm((doc) => {
        asking = false;
        showList(doc);
        refreshPictures();
        tick();
    }, message);
    main.replaceChildren(h('section', { class: 'panel' }, h('h2', {}, 'Your desktops'), form));
    focus();
}

function notice(text) {
    $('notice').textContent = text;
    $('notice').hidden = !text;
}

async function tick() {
    clearTimeout(timer);
    if (asking || document.hidden) {
        return;
    }
    try {
        showList(await api.sessions());
        notice('');
    } catch (err) {
        if (err.status === 401) {
            notice('');
            showLogin();
            return;
        }
        notice(err.status ? err.message : 'The gateway cannot be reached. Trying again…');
    }
    timer = setTimeout(tick, listEvery);
}

function refreshPictures() {
    if (!document.hidden) {
        for (const card of cards.values()) {
            card.refresh();
        }
    }
}

setInterval(refreshPictures, pictureEvery);
document.addEventListener('visibilitychange', () => {
    tick();
    refreshPictures();
});

$('logout').addEventListener('click', async () => {
    try {
        await api.post('logout');
        showLogin();
    } catch (err) {
        notice(`Not logged out: ${err.message}`);
    }
});

$('theme').value = settings.get('theme', 'auto');
$('theme').addEventListener('change', (event) => {
    settings.set('theme', event.target.value);
    if (event.target.value === 'auto') {
        delete document.documentElement.dataset.theme;
    } else {
        document.documentElement.dataset.theme = event.target.value;
    }
});

async function go() {
    const token = api.takeToken();
    if (token) {
        try {
            await api.login(token);
        } catch (err) {
            if (err.status === 401) {
                showLogin('That token is not valid any more.');
                return;
            }
        }
    }
    asking = false;
    tick();
}

addEventListener('hashchange', () => location.hash.includes('token=') && go());
go();
