/*
 * A new image as all words of a command line describe it: between img_create_options.c, which reads them, and
 * img_create.c, which makes it.
 */
#ifndef RINGSIDE_CMD_IMG_CREATION_H
#define RINGSIDE_CMD_IMG_CREATION_H

#include "host/cmd/img.h"
#include "host/qcow2/qcow2.h"

struct img_creation {
    struct qcow2_create_options qcow2; /* size, backing file and preallocation: also what raw was asked for */
    bool raw;
    bool size_given, compat_given, data_file_raw_given, preallocation_given;
    const char *encrypt_option; /* one that only means something to an encrypted image; NULL: none given */
    char *kept[IMG_CREATE_OPTIONS_MAX * 8]; /* strings that the options point to */
    unsigned kept_count;
};

/* Reads IMAGE's -o lists into C, which is empty, together with what IMAGE says itself. 0, or negative with
 * ERR; img_creation_free is due either way. C points into IMAGE. */
int img_creation_parse(struct img_creation *c, const struct img_new *image, struct error *err);

void img_creation_free(struct img_creation *c);

/* The line that says what is going to be made. */
void img_creation_describe(const struct img_creation *c, const struct img_new *image);

#endif
