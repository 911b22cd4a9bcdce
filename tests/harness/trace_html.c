/* A trace as a page for the browser: see trace_html.h. A row for each record, a bar for the time up to it. */
#include "tests/harness/trace_html.h"

#include <string.h>

static const char style[] =
    "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:72em;color:#223}"
    "h2{font-size:1.1em;margin:2em 0 .4em}table{border-collapse:collapse;width:100%}"
    "td,th{padding:.15em .6em;text-align:left;vertical-align:top}td.n{text-align:right;white-space:nowrap}"
    "code{font:13px ui-monospace,monospace}tr.again{color:#889}"
    "td.bar{width:32%}.track{position:relative;height:1em;background:#f2f3f7}"
    ".bar i{position:absolute;height:100%;display:block;min-width:2px}"
    ".guest i{background:#3778c2}.host i{background:#c2632f}.transport i{background:#5a9a4a}";

static void text_out(FILE *out, const char *text)
{
    for (; text && *text; text++) {
        switch (*text) {
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '&':
            fputs("&amp;", out);
            break;
        default:
            fputc(*text, out);
        }
    }
}

static const char *side_of(const char *module)
{
    if (strncmp(module, "guest", 5) == 0)
        return "guest";
    return strncmp(module, "host", 4) == 0 ? "host" : "transport";
}

static void row(FILE *out, const json_t *r, double before, double total)
{
    double ns = (double)json_integer_value(json_object_get(r, "ns"));
    const char *module = json_string_value(json_object_get(r, "module"));
    int again = json_is_true(json_object_get(r, "again"));

    fprintf(out, "<tr%s><td class=n>%lld</td><td class=n>%.1f</td><td class=\"bar %s\"><div class=track>",
            again ? " class=again" : "", (long long)json_integer_value(json_object_get(r, "step")), ns / 1e3,
            side_of(module));
    fprintf(out, "<i style=\"left:%.2f%%;width:%.2f%%\"></i></div></td><td><code>", before / total * 100,
            (ns - before) / total * 100);
    text_out(out, json_string_value(json_object_get(r, "function")));
    fputs("</code></td><td>", out);
    text_out(out, module);
    fputs("</td><td>", out);
    text_out(out, again ? "(again)" : json_string_value(json_object_get(r, "meaning")));
    fputs("</td></tr>\n", out);
}

void trace_html(FILE *out, const json_t *all)
{
    const json_t *requests = json_object_get(all, "requests");

    fprintf(out,
            "<!doctype html><html lang=en><meta charset=utf-8><title>The way of a request</title>"
            "<style>%s</style>\n<h1>The way of a request</h1>\n",
            style);
    for (size_t i = 0; i < json_array_size(requests); i++) {
        const json_t *one = json_array_get(requests, i), *records = json_object_get(one, "records");
        size_t count = json_array_size(records);
        double before = 0, total = 1;

        if (count)
            total += (double)json_integer_value(json_object_get(json_array_get(records, count - 1), "ns"));
        fputs("<h2>", out);
        text_out(out, json_string_value(json_object_get(one, "title")));
        fputs("</h2>\n<table><tr><th>step<th>us<th>time<th>function<th>where<th>what</tr>\n", out);
        for (size_t j = 0; j < count; j++) {
            const json_t *r = json_array_get(records, j);

            row(out, r, before, total);
            before = (double)json_integer_value(json_object_get(r, "ns"));
        }
        fputs("</table>\n", out);
    }
    fputs("</html>\n", out);
}
