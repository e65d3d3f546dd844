// How the desktop fits the window, and how good its picture is.
import * as api from './api.js';
import { $, settings } from './dom.js';

const settle = 250; // ms after the last change of the window's size
// A server that rounds its sizes may be off by a few pixels. Scaling by so little would only blur.
const slack = 16;
// Desktops are made for at least this many pixels across. On a smaller window they are larger and scaled down.
const smallest = 720;
const noticed = 6000; // ms that a notice stays

const qualities = { // JPEG quality and compression level, 0 to 9, as in the Tight encoding
    best: [9, 1],
    balanced: [6, 3],
    fast: [2, 7],
};

const isLoopback = /^(localhost|.*\.localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(location.hostname);

export class View {
    constructor(connection, screen) {
        this.connection = connection;
        this.screen = screen;
        this.mode = settings.get('mode', 'window');
        this.quality = settings.get('quality', 'auto');
        this.viewOnly = false;
        this.note = ''; // why the desktop is not as large as the window
        new ResizeObserver(() => this.changed()).observe(screen);
        document.addEventListener('visibilitychange', () => this.changed());
        this.canvasObserver = new MutationObserver(() => this.arrange());
        for (const [name, value] of [['mode', this.mode], ['quality', this.quality]]) {
            for (const input of document.querySelectorAll(`input[name=${name}]`)) {
                input.checked = input.value === value;
                input.addEventListener('change', () => this.choose(name, input.value));
            }
        }
        $('viewonly').addEventListener('change', (event) => {
            this.viewOnly = event.target.checked;
            this.apply();
        });
    }

    // attach makes the settings those of a new connection.
    attach(rfb) {
        this.rfb = rfb;
        rfb.background = 'transparent';
        rfb.showDotCursor = false;
        rfb.clipViewport = false;
        rfb.resizeSession = false; // the gateway does it, for servers that cannot be asked over RFB as well
        const canvas = this.screen.querySelector('canvas');
        this.canvasObserver.disconnect();
        this.canvasObserver.observe(canvas, { attributeFilter: ['width', 'height'] });
        this.apply();
        rfb.addEventListener('connect', () => {
            this.asked = null;
            this.arrange();
            this.request();
        });
    }

    choose(name, value) {
        this[name] = value;
        settings.set(name, value);
        this.asked = null;
        this.say('');
        this.apply();
        this.changed();
    }

    apply() {
        if (!this.rfb) {
            return;
        }
        const q = this.quality in qualities ? this.quality : isLoopback ? 'best' : 'balanced';
        [this.rfb.qualityLevel, this.rfb.compressionLevel] = qualities[q];
        this.rfb.viewOnly = this.viewOnly;
        // On a touch screen one finger moves what does not fit, else there are scroll bars.
        const touch = matchMedia('(pointer: coarse)').matches;
        this.rfb.clipViewport = this.mode === 'exact' && touch;
        this.rfb.dragViewport = false;
        this.arrange();
    }

    // wanted is the size of desktop that fills the window, in pixels.
    wanted() {
        const { clientWidth: w, clientHeight: h } = this.screen;
        const factor = Math.max(1, Math.min(smallest / w, 2));
        return { width: Math.round(w * factor), height: Math.round(h * factor) };
    }

    // arrange decides whether to scale, whenever the window's or the desktop's size has changed.
    arrange() {
        const canvas = this.screen.querySelector('canvas');
        if (!this.rfb || !canvas || !canvas.width) {
            return;
        }
        const { clientWidth: w, clientHeight: h } = this.screen;
        let scale = this.mode !== 'exact';
        if (this.mode === 'window') {
            const dw = w - canvas.width, dh = h - canvas.height;
            scale = !(dw >= 0 && dw < slack && dh >= 0 && dh < slack);
        }
        this.rfb.scaleViewport = scale;
        $('size').textContent = `The desktop has ${canvas.width} × ${canvas.height} pixels, this window ${w} × ${h}. ${this.note}`;
    }

    // say tells once why the desktop is not as large as the window: for a moment over the desktop, where it is seen, and
    // for longer in the panel.
    say(note) {
        if (note && note !== this.note) {
            $('notice').textContent = note;
            $('notice').hidden = false;
            clearTimeout(this.hiding);
            this.hiding = setTimeout(() => { $('notice').hidden = true; }, noticed);
        }
        this.note = note;
        this.arrange();
    }

    changed() {
        this.arrange();
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.request(), settle);
    }

    // request asks the gateway for a desktop of the window's size, or the nearest there is, one request at a time and only
    // the newest.
    async request() {
        if (this.mode !== 'window' || this.connection.state !== 'connected' || this.viewOnly || document.hidden) {
            return;
        }
        if (this.requesting) {
            this.again = true;
            return;
        }
        const { width, height } = this.wanted();
        if (!width || !height) {
            return;
        }
        const key = `${width}x${height}`;
        const canvas = this.screen.querySelector('canvas');
        if (canvas && canvas.width === width && canvas.height === height) {
            this.asked = null;
            this.say('');
            return;
        }
        if (this.asked === key) {
            return;
        }
        this.asked = key;
        this.requesting = true;
        try {
            const now = await (await api.post(`api/sessions/${encodeURIComponent(this.connection.name)}/resize`, { width, height })).json();
            const exact = now.width === width && now.height === height;
            this.say(exact ? '' : `${now.width} × ${now.height} is the nearest to this window's size that this desktop can have.`);
        } catch (err) {
            this.say(`The desktop keeps its size: ${err.message}.`); // scaled to fit is the next best
        } finally {
            this.requesting = false;
        }
        if (this.again) {
            this.again = false;
            this.request();
        }
    }
}
