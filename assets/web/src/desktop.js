// The page of one desktop.
import * as api from './api.js';
import { Bar } from './bar.js';
import { Clipboard } from './clipboard.js';
import { Connection } from './connection.js';
import { $, h } from './dom.js';
import { loginForm, sentence } from './login.js';
import { KeyTable, Typing } from './typing.js';
import { View } from './view.js';

const name = decodeURIComponent(location.pathname.split('/').filter(Boolean).at(-1));
document.title = name;
$('name').textContent = name;

const screen = $('screen');
const connection = new Connection(name, screen);
const bar = new Bar(() => connection.rfb?.focus({ preventScroll: true }));
const view = new View(connection, screen);
const clipboard = new Clipboard((waiting) => $('b-clip').classList.toggle('dot', waiting));

// ---- keys ----

const held = new Map(); // keysym -> button, of modifiers that are held down
const modifiers = [
    ['Ctrl', KeyTable.XK_Control_L, 'ControlLeft'], ['Alt', KeyTable.XK_Alt_L, 'AltLeft'],
    ['Shift', KeyTable.XK_Shift_L, 'ShiftLeft'], ['Super', KeyTable.XK_Super_L, 'MetaLeft'],
];
const code = Object.fromEntries(modifiers.map(([label, keysym, code]) => [label, [keysym, code]]));
const combos = [
    ['Ctrl+Alt+Del', [code.Ctrl, code.Alt, [KeyTable.XK_Delete, 'Delete']]],
    ['Super', [code.Super]],
    ['Alt+Tab', [code.Alt, [KeyTable.XK_Tab, 'Tab']]],
    ['Alt+F4', [code.Alt, [KeyTable.XK_F4, 'F4']]],
    ['Esc', [[KeyTable.XK_Escape, 'Escape']]],
    ['Tab', [[KeyTable.XK_Tab, 'Tab']]],
    ['Print', [[KeyTable.XK_Print, 'PrintScreen']]],
    ['Ctrl+C', [code.Ctrl, [0x63, 'KeyC']]],
];

for (const [label, keys] of combos) {
    $('combos').append(h('button', {
        type: 'button',
        onclick: () => {
            for (const [keysym, code] of keys) {
                connection.rfb?.sendKey(keysym, code, true);
            }
            for (const [keysym, code] of keys.toReversed?.() ?? [...keys].reverse()) {
                connection.rfb?.sendKey(keysym, code, false);
            }
            releaseHeld();
        },
    }, label));
}

for (const [label, keysym, code] of modifiers) {
    const button = h('button', {
        type: 'button', 'aria-pressed': 'false',
        onclick: () => {
            const down = !held.has(keysym);
            connection.rfb?.sendKey(keysym, code, down);
            button.setAttribute('aria-pressed', String(down));
            if (down) {
                held.set(keysym, [button, code]);
            } else {
                held.delete(keysym);
            }
        },
    }, label);
    $('holds').append(button);
}

function releaseHeld() {
    for (const [keysym, [button, code]] of held) {
        connection.rfb?.sendKey(keysym, code, false);
        button.setAttribute('aria-pressed', 'false');
    }
    held.clear();
}

const typing = new Typing($('typing'), (keysym) => {
    connection.rfb?.sendKey(keysym, null);
    releaseHeld(); // a modifier held for the on-screen keyboard is for one key
}, (open) => $('b-type').setAttribute('aria-pressed', String(open)));
// Buttons take the focus when pressed, which would close the keyboard before the click could.
$('b-type').addEventListener('pointerdown', (event) => event.preventDefault());
$('b-type').addEventListener('click', () => typing.toggle());
// Of use where there is touch only; a hybrid has both.
$('b-type').hidden = !(navigator.maxTouchPoints > 0 || matchMedia('(any-pointer: coarse)').matches);

// ---- full screen ----

$('b-full').hidden = !document.fullscreenEnabled;
$('b-full').addEventListener('click', async () => {
    if (document.fullscreenElement) {
        await document.exitFullscreen();
        return;
    }
    try {
        await document.documentElement.requestFullscreen({ navigationUI: 'hide' });
        // Where the browser can, Alt+Tab, Super and Esc then go to the desktop (hold Esc to leave).
        await navigator.keyboard?.lock?.();
    } catch {
        // Refused by the browser or its user.
    }
    bar.hide();
});
document.addEventListener('fullscreenchange', () => {
    const full = Boolean(document.fullscreenElement);
    $('b-full').setAttribute('aria-pressed', String(full));
    $('b-full').querySelector('use').setAttribute('href', full ? '#i-unfull' : '#i-full');
    if (!full) {
        navigator.keyboard?.unlock?.();
    }
});

// ---- states ----

let countdown;

// veil covers the desktop with what there is to say.
function veil({ title, text = '', busy = false, retry = false, list = true, login = null }) {
    $('veil').hidden = false;
    $('veil-title').textContent = title;
    $('veil-text').textContent = text;
    $('veil-text').hidden = !text;
    $('spinner').hidden = !busy;
    $('retry').hidden = !retry;
    $('veil-list').hidden = !list;
    $('veil-login').replaceChildren(...(login ? [login] : []));
}

// keepStill shows the last picture behind the veil.
let canvas;
function keepStill() {
    const still = $('still');
    if (canvas?.width) {
        still.width = canvas.width;
        still.height = canvas.height;
        still.getContext('2d').drawImage(canvas, 0, 0);
        still.hidden = false;
    }
    canvas = null;
}

const say = {
    connecting: ({ again }) => again
        ? veil({ title: 'Reconnecting…', busy: true })
        : veil({ title: 'Connecting…', text: name, busy: true, list: false }),
    waiting: ({ seconds, text }) => {
        veil({ title: connection.wasShown ? 'Connection lost' : 'No connection yet', busy: true, retry: true });
        const until = Date.now() + seconds * 1000;
        const show = () => {
            const left = Math.ceil((until - Date.now()) / 1000);
            $('veil-text').hidden = false;
            $('veil-text').textContent = sentence(text) + (left > 0 ? ` Next try in ${left} s.` : '');
        };
        show();
        countdown = setInterval(show, 500);
    },
    starting: () => veil({ title: 'The session is starting…', text: name, busy: true }),
    failed: () => veil({
        title: 'The session has failed',
        text: `A part of “${name}” that it needs could not be started. “berth logs ${name}” says why.`,
    }),
    ended: ({ wasShown }) => veil({
        title: wasShown ? 'The session has ended' : 'No such session',
        text: wasShown ? `“${name}” is not running any more.`
            : `There is no session “${name}”, or it is not among those you may see.`,
    }),
    login: () => {
        const { form, focus } = loginForm(() => connection.connect());
        veil({ title: `Log in to “${name}”`, list: false, login: form });
        focus();
    },
};

connection.addEventListener('state', ({ detail }) => {
    clearInterval(countdown);
    $('light').dataset.state = detail.state;
    document.title = detail.state === 'connected' || detail.state === 'connecting' ? name : `${name} (${titles[detail.state]})`;
    if (detail.state !== 'connected') {
        keepStill();
        held.clear();
        for (const b of $('holds').children) {
            b.setAttribute('aria-pressed', 'false');
        }
        if (detail.state !== connection.veiled || detail.state === 'waiting') {
            say[detail.state](detail);
        }
        connection.veiled = detail.state;
        return;
    }
    connection.veiled = null;
    canvas = screen.querySelector('canvas');
    canvas.setAttribute('role', 'application');
    canvas.setAttribute('aria-label', `Desktop ${name}`);
    $('veil').hidden = true;
    $('still').hidden = true;
    bar.bar.hidden = false; // before there is a desktop, it would have nothing to act on
    if (!bar.bar.contains(document.activeElement)) {
        connection.rfb.focus({ preventScroll: true });
    }
    peek();
});

const titles = { waiting: 'no connection', starting: 'starting', failed: 'failed', ended: 'ended', login: 'log in' };

// peek shows the toolbar for a moment, once, so that people know where it is.
let peeked = false;
function peek() {
    if (!peeked) {
        peeked = true;
        bar.show();
    }
}

connection.addEventListener('rfb', ({ detail: rfb }) => {
    view.attach(rfb);
    clipboard.attach(rfb);
});
$('retry').addEventListener('click', () => connection.connect());

// ---- go ----

async function go() {
    const token = api.takeToken();
    if (token) {
        try {
            await api.login(token);
        } catch (err) {
            // An older login may still do without this token; connecting finds out, and says what is wrong if not.
            console.warn(`berth: token not accepted: ${err.message}`);
        }
    }
    connection.connect();
}

addEventListener('hashchange', () => location.hash.includes('token=') && go());
go();
