/*
 * Line editing for a terminal that knows backspace, carriage return and "erase to the end of the line".
 */
#include "guest/apps/shell_line.h"

#include <stdio.h>
#include <string.h>

#include "guest/platform/machine.h"

#define HISTORY 32

enum key { KEY_NONE = 256, KEY_UP, KEY_DOWN, KEY_LEFT, KEY_RIGHT, KEY_HOME, KEY_END, KEY_DELETE };

#define CONTROL(letter) ((letter)&31)

struct editor {
    const char *prompt;
    char *text;
    unsigned len, at;
    unsigned back; /* how many lines back in the history we are */
    char kept[LINE_BYTES];
};

static char history[HISTORY][LINE_BYTES];
static unsigned history_count;

static int next_char(void)
{
    int c;
    while ((c = machine_console_read()) < 0)
        machine_wait(machine_now_ns() + 2000000);
    return c;
}

static int next_key(void)
{
    static const struct {
        char final;
        enum key key;
    } finals[] = {{'A', KEY_UP},   {'B', KEY_DOWN}, {'C', KEY_RIGHT}, {'D', KEY_LEFT},
                  {'H', KEY_HOME}, {'F', KEY_END},  {'1', KEY_HOME},  {'4', KEY_END},
                  {'7', KEY_HOME}, {'8', KEY_END},  {'3', KEY_DELETE}};
    int c = next_char();
    if (c != 27)
        return c;
    c = next_char();
    if (c != '[' && c != 'O')
        return KEY_NONE;
    int first = next_char(), last = first;
    while (last != '~' && last >= '0' && last <= ';')
        last = next_char();
    for (unsigned i = 0; i < sizeof finals / sizeof finals[0]; i++) {
        if (finals[i].final == first)
            return (int)finals[i].key;
    }
    return KEY_NONE;
}

static void redraw(const struct editor *e)
{
    printf("\r%s%s\x1b[K", e->prompt, e->text);
    for (unsigned i = e->len; i > e->at; i--)
        putchar('\b');
    fflush(stdout);
}

static void erase(struct editor *e, unsigned from, unsigned to)
{
    memmove(e->text + from, e->text + to, e->len - to + 1);
    e->len -= to - from;
    e->at = from;
}

static void insert(struct editor *e, char c)
{
    if (e->len + 1 >= LINE_BYTES) {
        putchar('\a');
        return;
    }
    memmove(e->text + e->at + 1, e->text + e->at, e->len - e->at + 1);
    e->text[e->at++] = c;
    e->len++;
}

static void recall(struct editor *e, unsigned back)
{
    if (back > history_count || back > HISTORY)
        return;
    if (e->back == 0)
        strcpy(e->kept, e->text);
    e->back = back;
    strcpy(e->text, back ? history[(history_count - back) % HISTORY] : e->kept);
    e->at = e->len = (unsigned)strlen(e->text);
}

static void word_back(struct editor *e)
{
    unsigned from = e->at;
    while (from && e->text[from - 1] == ' ')
        from--;
    while (from && e->text[from - 1] != ' ')
        from--;
    erase(e, from, e->at);
}

static void edit(struct editor *e, int key)
{
    switch (key) {
    case CONTROL('A'):
    case KEY_HOME:
        e->at = 0;
        break;
    case CONTROL('E'):
    case KEY_END:
        e->at = e->len;
        break;
    case CONTROL('B'):
    case KEY_LEFT:
        e->at -= e->at > 0;
        break;
    case CONTROL('F'):
    case KEY_RIGHT:
        e->at += e->at < e->len;
        break;
    case '\b':
    case 127:
        if (e->at)
            erase(e, e->at - 1, e->at);
        break;
    case CONTROL('D'):
    case KEY_DELETE:
        if (e->at < e->len)
            erase(e, e->at, e->at + 1);
        break;
    case CONTROL('K'):
        erase(e, e->at, e->len);
        break;
    case CONTROL('U'):
        erase(e, 0, e->at);
        break;
    case CONTROL('W'):
        word_back(e);
        break;
    case CONTROL('P'):
    case KEY_UP:
        recall(e, e->back + 1);
        break;
    case CONTROL('N'):
    case KEY_DOWN:
        if (e->back)
            recall(e, e->back - 1);
        break;
    default:
        if (key >= ' ' && key < 127)
            insert(e, (char)key);
        break;
    }
}

bool line_read(const char *prompt, char line[LINE_BYTES])
{
    struct editor e = {.prompt = prompt, .text = line};
    line[0] = '\0';
    printf("%s", prompt);
    fflush(stdout);
    for (;;) {
        int key = next_key();
        if (key == '\r' || key == '\n')
            break;
        if (key == CONTROL('D') && e.len == 0) {
            printf("\n");
            return false;
        }
        if (key == CONTROL('C')) {
            printf("^C\n");
            line[0] = '\0';
            return true;
        }
        edit(&e, key);
        if (key >= ' ' && key < 127 && e.at == e.len) {
            putchar(key); /* the usual case: typed at the end */
            fflush(stdout);
        } else {
            redraw(&e);
        }
    }
    printf("\n");
    if (line[0] && (history_count == 0 || strcmp(history[(history_count - 1) % HISTORY], line) != 0))
        strcpy(history[history_count++ % HISTORY], line);
    return true;
}
