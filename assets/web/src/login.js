import { APIError, login } from './api.js';
import { h } from './dom.js';

// loginForm asks for a token until one is right, then calls done with the sessions it opens.
export function loginForm(done, message = '') {
    const field = h('input', {
        id: 'token', type: 'password', name: 'token', autocomplete: 'current-password', required: true,
        spellcheck: 'false', autocapitalize: 'off', 'aria-describedby': 'login-error',
    });
    const error = h('p', { id: 'login-error', class: 'error', role: 'alert' }, message);
    const button = h('button', { class: 'primary' }, 'Log in');
    const form = h('form', {
        class: 'login',
        onsubmit: async (event) => {
            event.preventDefault();
            button.disabled = true;
            error.textContent = '';
            try {
                done(await login(tokenOf(field.value.trim())));
            } catch (err) {
                error.textContent = err instanceof APIError ? sentence(err.message) : 'The gateway cannot be reached.';
                field.select();
            } finally {
                button.disabled = false;
            }
        },
    }, h('label', { for: 'token' }, 'Token'), h('div', { class: 'row' }, field, button), error,
    h('p', { class: 'quiet' }, 'Run ', h('code', {}, 'berth open NAME'), ' on the host: it prints an address that logs in.'));
    return { form, focus: () => field.focus() };
}

// tokenOf takes a token from what was pasted, which may be the whole address.
function tokenOf(text) {
    const at = text.indexOf('#token=');
    return at < 0 ? text : decodeURIComponent(text.slice(at + '#token='.length));
}

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? '' : '.');
