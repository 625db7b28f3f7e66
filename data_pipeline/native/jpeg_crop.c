/* Decodes the rows and columns of a crop of a JPEG file, through torchvision's own libjpeg-turbo.
 *
 * Called from data_pipeline/jpeg_crop.py by ctypes, which releases the interpreter lock; there is no
 * state but the library's entry points, so any number of threads may decode at once. Every function
 * answers 0 for "not this file" (or "not this library"): the caller then decodes the whole image as it
 * would have without this file, and its outcome counts.
 */
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "libjpeg_v8.h"

#define NATIVE_INTERFACE 2 /* raised with every change of what Python gets from here: old builds are refused */

enum {
  SOF0 = 0xC0, SOF1 = 0xC1, SOF2 = 0xC2, DHT = 0xC4, RST0 = 0xD0, RST7 = 0xD7, SOI = 0xD8, EOI = 0xD9,
  SOS = 0xDA, DQT = 0xDB, DRI = 0xDD, APP0 = 0xE0, APP1 = 0xE1, APP15 = 0xEF, COM = 0xFE,
  ORIENTATION = 0x0112, UPRIGHT = 1,
  /* Upsampling looks at one chroma sample to each side, and small widths are upsampled otherwise. */
  MARGIN = 2, SMALLEST_WIDTH = 16,
  MAX_SCANS = 100, /* as in decode.py, which refuses such files */
};

static struct library lib;

int native_interface(void) { return NATIVE_INTERFACE; }

/* ------------------------------------------------------------------ what a file is, by its markers */

struct frame {
  int width, height, num_components, is_progressive, num_scans, has_plain_scan;
};

static unsigned be16(const uint8_t *at) { return (unsigned)at[0] << 8 | at[1]; }

static unsigned tiff16(const uint8_t *at, int little) {
  return little ? (unsigned)at[1] << 8 | at[0] : be16(at);
}

static uint32_t tiff32(const uint8_t *at, int little) {
  return little ? (uint32_t)tiff16(at + 2, 1) << 16 | tiff16(at, 1)
                : (uint32_t)be16(at) << 16 | be16(at + 2);
}

/* Whether an APP1 segment's content leaves the picture as it is: no EXIF, or none that turns it. */
static int is_upright(const uint8_t *body, size_t size) {
  if (size < 6 || memcmp(body, "Exif\0", 5) != 0) return 1;
  const uint8_t *tiff = body + 6;
  size -= 6;
  if (size < 8) return 0;
  int little = tiff[0] == 'I';
  size_t place = tiff32(tiff + 4, little);
  if (place > size - 2) return 0;
  unsigned count = tiff16(tiff + place, little);
  place += 2;
  for (; count > 0; count--, place += 12) {
    if (place + 12 > size) return 0;
    if (tiff16(tiff + place, little) == ORIENTATION)
      return tiff16(tiff + place + 2, little) == 3 && tiff16(tiff + place + 8, little) == UPRIGHT;
  }
  return 1;
}

/* Place of the first marker at or after `place` that is no restart marker; `size` if there is none. */
static size_t end_of_scan(const uint8_t *data, size_t size, size_t place) {
  while (place + 1 < size) {
    const uint8_t *found = memchr(data + place, 0xFF, size - 1 - place);
    if (found == NULL) return size;
    place = (size_t)(found - data);
    uint8_t next = data[place + 1];
    if (next == 0xFF)
      place += 1; /* fill byte */
    else if (next == 0 || (next >= RST0 && next <= RST7))
      place += 2;
    else
      return place;
  }
  return size;
}

/* Take note of a frame header; 0 if its kind is not ours. */
static int read_frame(const uint8_t *body, size_t size, int marker, struct frame *frame) {
  if (size < 6 || frame->width != 0 || body[0] != 8) return 0;
  frame->height = (int)be16(body + 1);
  frame->width = (int)be16(body + 3);
  frame->num_components = body[5];
  frame->is_progressive = marker == SOF2;
  return frame->width > 0 && frame->height > 0 &&
         (frame->num_components == 1 || frame->num_components == 3);
}

/* Handle one segment with a length; 0 for a kind that the whole-image path must look at. */
static int read_segment(const uint8_t *body, size_t size, int marker, struct frame *frame) {
  switch (marker) {
    case SOF0: case SOF1: case SOF2:
      return read_frame(body, size, marker, frame);
    case SOS:
      if (size < 1 || frame->width == 0) return 0;
      if (frame->num_scans++ == 0)
        frame->has_plain_scan = !frame->is_progressive && body[0] == frame->num_components;
      return frame->num_scans <= MAX_SCANS;
    case APP1:
      return is_upright(body, size);
    case DHT: case DQT: case DRI: case COM:
      return 1;
    default:
      return marker >= APP0 && marker <= APP15;
  }
}

/* Walk over all markers from SOI to EOI; 1 if a crop can be decoded without a second thought.
 *
 * A file that passes cannot fail after the rows of some crop and before the rows of another: a single
 * scan of all components is followed by EOI at once, entropy decoding itself only warns, and with more
 * scans the library reads every one before the first row. So whether a file is broken stays a function
 * of its bytes, whichever crop is asked for.
 */
static int walk(const uint8_t *data, size_t size, struct frame *frame) {
  size_t place = 2;
  if (size < 4 || data[0] != 0xFF || data[1] != SOI) return 0;
  while (place + 1 < size && data[place] == 0xFF) {
    int marker = data[place + 1];
    if (marker == 0xFF) {
      place += 1;
      continue;
    }
    if (marker == EOI) return frame->num_scans > 0;
    if (frame->num_scans > 0 && frame->has_plain_scan) return 0;
    if (place + 4 > size) return 0;
    size_t length = be16(data + place + 2);
    if (length < 2 || length > size - place - 2) return 0;
    if (!read_segment(data + place + 4, length - 2, marker, frame)) return 0;
    place += 2 + length;
    if (marker == SOS) place = end_of_scan(data, size, place);
  }
  return 0;
}

/* Width and height of a JPEG file whose crops `jpeg_crop` may decode; 0 for every other file. */
int jpeg_size(const uint8_t *data, size_t size, int32_t *width, int32_t *height) {
  struct frame frame = {0};
  if (!walk(data, size, &frame)) return 0;
  *width = frame.width;
  *height = frame.height;
  return 1;
}

/* ------------------------------------------------------------------ decoding */

struct job {
  struct decompressor jpeg; /* first: the library hands its address to the functions below */
  struct error_handler errors;
  struct source source;
  jmp_buf failed;
  uint8_t *row;
};

static void fail(struct decompressor *jpeg) { longjmp(((struct job *)jpeg)->failed, 1); }
static int out_of_data(struct decompressor *jpeg) { fail(jpeg); return 0; }
static void keep_quiet(struct decompressor *jpeg) { (void)jpeg; }
static void keep_quiet_at(struct decompressor *jpeg, int level) { (void)jpeg; (void)level; }

static void skip_data(struct decompressor *jpeg, long count) {
  struct source *source = jpeg->source;
  if (count <= 0) return;
  if ((size_t)count > source->num_left) fail(jpeg);
  source->next += count;
  source->num_left -= (size_t)count;
}

static void begin(struct job *job, const uint8_t *data, size_t size) {
  job->jpeg.errors = lib.std_error(&job->errors);
  job->errors.error_exit = fail;
  job->errors.emit_message = keep_quiet_at;
  job->errors.output_message = keep_quiet;
  lib.create(&job->jpeg, INTERFACE_VERSION, sizeof(struct decompressor));
  job->source = (struct source){data, size, keep_quiet, out_of_data, skip_data, lib.resync, keep_quiet};
  job->jpeg.source = &job->source;
}

/* Whether neighbouring blocks are about to be smoothed into each other (a progression cut short). */
static int is_incomplete(const struct decompressor *jpeg) {
  if (jpeg->precision_left == NULL) return 0;
  for (int component = 0; component < jpeg->num_components; component++)
    for (int k = 0; k < COEFFICIENTS; k++)
      if (jpeg->precision_left[component][k] != 0) return 1;
  return 0;
}

/* Decode the box, in pixels of the scaled image, row by row. */
static void read_box(struct job *job, const int32_t *box, uint8_t *out) {
  struct decompressor *jpeg = &job->jpeg;
  unsigned left = (unsigned)box[0], top = (unsigned)box[1], wanted = (unsigned)box[2];
  unsigned bottom = top + (unsigned)box[3];
  if (left + wanted > jpeg->output_width || bottom > jpeg->output_height) fail(jpeg);
  unsigned first = left > MARGIN ? left - MARGIN : 0, end = left + wanted + MARGIN;
  if (end < first + SMALLEST_WIDTH) end = first + SMALLEST_WIDTH;
  if (end > jpeg->output_width) end = jpeg->output_width;
  if (end < first + SMALLEST_WIDTH) first = end > SMALLEST_WIDTH ? end - SMALLEST_WIDTH : 0;
  unsigned width = end - first;
  lib.crop(jpeg, &first, &width);
  job->row = malloc((size_t)width * COMPONENTS);
  if (job->row == NULL) fail(jpeg);
  if (top > 0 && lib.skip_rows(jpeg, top) != top) fail(jpeg);
  const uint8_t *from = job->row + (size_t)(left - first) * COMPONENTS;
  for (; jpeg->output_row < bottom; out += (size_t)wanted * COMPONENTS) {
    if (lib.read_rows(jpeg, &job->row, 1) != 1) fail(jpeg);
    memcpy(out, from, (size_t)wanted * COMPONENTS);
  }
}

/* Decode a crop as RGB, (height, width, 3), tightly packed.
 *
 * box: left, top, width, height in pixels of the image scaled by eighths / 8 (rounded up).
 */
int jpeg_crop(const uint8_t *data, size_t size, int eighths, const int32_t *box, uint8_t *out) {
  struct job *job = calloc(1, sizeof(struct job));
  volatile int done = 0;
  if (job == NULL) return 0;
  if (setjmp(job->failed) == 0) {
    begin(job, data, size);
    lib.read_header(&job->jpeg, 1);
    job->jpeg.out_color = COLOR_RGB;
    job->jpeg.scale_num = (unsigned)eighths;
    job->jpeg.scale_denom = 8;
    lib.start(&job->jpeg);
    if (!is_incomplete(&job->jpeg)) {
      read_box(job, box, out);
      done = 1;
    }
  }
  if (job->jpeg.memory != NULL) lib.destroy(&job->jpeg);
  free(job->row);
  free(job);
  return done;
}

/* Take the library's entry points; 0 if its interface is not the one declared in libjpeg_v8.h. */
int use_library(const struct library *entries) {
  struct job *job = calloc(1, sizeof(struct job));
  volatile int done = 0;
  lib = *entries;
  if (job == NULL) return 0;
  if (setjmp(job->failed) == 0) {
    begin(job, NULL, 0);
    done = 1;
  }
  if (job->jpeg.memory != NULL) lib.destroy(&job->jpeg);
  free(job);
  return done;
}

/* ------------------------------------------------------------------ into the batch */

/* Reverse a row in place, eight pixels at a time. */
static void mirror_row(uint8_t *row, size_t width) {
  size_t first = 0, end = width;
  for (; end - first >= 16; first += 8, end -= 8) {
    uint64_t left, right;
    memcpy(&left, row + first, 8);
    memcpy(&right, row + end - 8, 8);
    left = __builtin_bswap64(left);
    right = __builtin_bswap64(right);
    memcpy(row + first, &right, 8);
    memcpy(row + end - 8, &left, 8);
  }
  for (; first + 1 < end; first++, end--) {
    uint8_t pixel = row[first];
    row[first] = row[end - 1];
    row[end - 1] = pixel;
  }
}

/* Pixels of three bytes are taken apart by byte shuffles, which the oldest x86-64 processors lack:
 * the copy is compiled for each kind, and the first call chooses. Four times as fast. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "ssse3", "default")))
#endif
#endif
#ifndef FOR_EACH_PROCESSOR
#define FOR_EACH_PROCESSOR
#endif

/* Copy packed RGB pixels into three planes, mirrored left to right if asked for. */
FOR_EACH_PROCESSOR void to_planes(const uint8_t *pixels, int32_t height, int32_t width, int mirror, uint8_t *out) {
  size_t count = (size_t)width, plane = (size_t)height * count;
  for (int32_t y = 0; y < height; y++, pixels += count * COMPONENTS, out += count) {
    uint8_t *restrict red = out, *restrict green = out + plane, *restrict blue = out + 2 * plane;
    for (size_t x = 0; x < count; x++) {
      red[x] = pixels[x * COMPONENTS];
      green[x] = pixels[x * COMPONENTS + 1];
      blue[x] = pixels[x * COMPONENTS + 2];
    }
    if (mirror) {
      mirror_row(red, count);
      mirror_row(green, count);
      mirror_row(blue, count);
    }
  }
}
