/* The binary interface of libjpeg, version 8, as far as a decoder needs it.
 *
 * torchvision ships libjpeg-turbo with this interface (its soname ends in .so.8) but no headers, so
 * what crosses the boundary is declared here: three structures whose layout has been fixed since
 * 2010, with names of our own. Nothing is trusted blindly. jpeg_CreateDecompress is given the version
 * and the size of our structure and refuses to go on when either is not its own, and jpeg_crop.py
 * compares decoded pixels with torchvision's before the decoder is used.
 */
#ifndef VITRAIN_LIBJPEG_V8_H
#define VITRAIN_LIBJPEG_V8_H

#include <stddef.h>
#include <stdint.h>

enum { INTERFACE_VERSION = 80, COLOR_RGB = 2, COEFFICIENTS = 64, COMPONENTS = 3 };

struct decompressor;

struct error_handler {
  void (*error_exit)(struct decompressor *);
  void (*emit_message)(struct decompressor *, int level);
  void (*output_message)(struct decompressor *);
  void (*format_message)(struct decompressor *, char *text);
  void (*reset)(struct decompressor *);
  int code;
  char parameters[80];
  int trace_level;
  long num_warnings;
  const char *const *messages;
  int last_message;
  const char *const *more_messages;
  int first_more, last_more;
};

struct source {
  const uint8_t *next;
  size_t num_left;
  void (*init)(struct decompressor *);
  int (*fill)(struct decompressor *);
  void (*skip)(struct decompressor *, long num_bytes);
  int (*resync)(struct decompressor *, int wanted);
  void (*term)(struct decompressor *);
};

struct decompressor {
  struct error_handler *errors;
  void *memory, *progress, *client;
  int is_decompressor, state;
  struct source *source;
  unsigned image_width, image_height;
  int num_components, file_color, out_color;
  unsigned scale_num, scale_denom;
  double gamma;
  int buffered, raw_output, dct_method, fancy_upsampling, block_smoothing;
  int quantize, dither, two_pass, num_colors, one_pass_later, colormap_later, two_pass_later;
  unsigned output_width, output_height;
  int out_components, output_components, good_buffer_rows;
  int actual_colors;
  uint8_t **colormap;
  unsigned output_row;
  int input_scan;
  unsigned input_unit_row;
  int output_scan;
  unsigned output_unit_row;
  int (*precision_left)[COEFFICIENTS];
  void *quantization[4], *dc_tables[4], *ac_tables[4];
  int bits_per_sample;
  void *components;
  int is_baseline, is_progressive, is_arithmetic;
  uint8_t arithmetic_tables[3][16];
  unsigned restart_interval;
  int has_jfif;
  uint8_t jfif_major, jfif_minor, density_unit;
  uint16_t density_x, density_y;
  int has_adobe;
  uint8_t adobe_transform;
  int cosited;
  void *markers;
  int max_h_samples, max_v_samples, min_h_scaled, min_v_scaled;
  unsigned num_unit_rows;
  void *range_limit;
  int scan_components;
  void *scan_component[4];
  unsigned units_per_row, unit_rows_in_scan;
  int blocks_in_unit, unit_membership[10];
  int spectral_start, spectral_end, approx_high, approx_low;
  int block_size;
  const int *natural_order;
  int spectral_limit, unread_marker;
  void *modules[11];
};

/* Entry points of the library, in the order of FUNCTIONS in jpeg_crop.py. */
struct library {
  struct error_handler *(*std_error)(struct error_handler *);
  void (*create)(struct decompressor *, int version, size_t size);
  void (*destroy)(struct decompressor *);
  int (*read_header)(struct decompressor *, int require_image);
  int (*start)(struct decompressor *);
  void (*crop)(struct decompressor *, unsigned *left, unsigned *width);
  unsigned (*skip_rows)(struct decompressor *, unsigned count);
  unsigned (*read_rows)(struct decompressor *, uint8_t **rows, unsigned count);
  int (*resync)(struct decompressor *, int wanted);
};

#endif
