// The convolution around a level's inner kernel: loops over channel blocks, then over tiles of pixels.
#pragma once

#include "../threads.h"
#include "epilogue.h"
#include "narrow.h"

namespace binarize {
namespace {

template <class Level>
using CountTile = void (*)(const Operands&, const uint32_t* const*, uint32_t (*)[kLanes]);

template <class Level>
CountTile<Level> counter_of(int pixels) {
  static_assert(Level::kTile <= kMostPixels, "tables below hold seven sizes");
  switch (smaller(pixels, Level::kTile)) {
    case 1:
      return Level::template count<1>;
    case 2:
      return Level::template count<2>;
    case 3:
      return Level::template count<3>;
    case 4:
      return Level::template count<4>;
    case 5:
      return Level::template count<(Level::kTile < 5 ? Level::kTile : 5)>;
    case 6:
      return Level::template count<(Level::kTile < 6 ? Level::kTile : 6)>;
    default:
      return Level::template count<Level::kTile>;
  }
}

template <class Level>
void count_tile(const Operands& operands, const uint32_t* const* places, int pixels, uint32_t (*counts)[kLanes]) {
  if constexpr (Level::kFields > 0)
    if (operands.fields) return counter_of<typename Level::Fields>(pixels)(operands, places, counts);
  if constexpr (Level::kRows)
    Level::count_rows(operands, places, pixels, counts);
  else
    counter_of<Level>(pixels)(operands, places, counts);
}

// How the pixels of a chunk are cut into tiles of nearly one size: 8 pixels are 4 + 4, for the inner kernel hides
// latency by the size of its tile. With kRows a tile is part of a row, or two short rows.
template <class Level>
struct Tiles {
  int64_t pixels, columns, pieces, count;

  explicit Tiles(const Chunk& chunk) : pixels(chunk.pixels()), columns(chunk.columns), pieces(1) {
    if (!Level::kRows)
      count = ceil_div(pixels, Level::kTile);
    else if (short_rows())
      count = ceil_div(pixels, 2 * columns);
    else
      count = (chunk.last - chunk.first) * (pieces = ceil_div(columns, Level::kTile));
  }

  bool short_rows() const { return 2 * columns <= Level::kTile; }

  // The first pixel of a tile; behind the last tile, that behind the last pixel.
  int64_t first(int64_t tile) const {
    if (!Level::kRows) return tile * pixels / count;
    if (short_rows()) return smaller(tile * 2 * columns, pixels);
    return tile / pieces * columns + tile % pieces * columns / pieces;
  }
};

// One block of channels over all pixels of a chunk.
struct Block {
  int64_t group, index, channel;  // channel: its first, over all groups
  int lanes;
  uint32_t flip;
};

inline Block block_of(const Plan& plan, int64_t unit) {
  const Geometry& g = *plan.call->geometry;
  const int64_t group = unit / plan.blocks, index = unit % plan.blocks, first = index * kLanes;
  const int64_t channel = group * g.out_channels + first;
  const int lanes = static_cast<int>(smaller(kLanes, g.out_channels - first));
  return {group, index, channel, lanes, flips_of(*plan.call, channel, lanes)};
}

// Where the weights of a block lie as they are multiplied.
inline const uint32_t* weight_of(const Plan& plan, const Workspace& space, const Block& block) {
  const Geometry& g = *plan.call->geometry;
  const uint32_t* stored = plan.call->weight + block.group * plan.group_words + block.index * plan.block_words;
  if (!plan.widens) return stored;
  for (int term = 0; term < g.weight_terms; ++term)
    if (g.weight_planes[term] > 0)  // the constant +1 is not multiplied
      widen(stored + term * plan.plane_words, g.narrow, plan.taps * g.words, space.weight + term * plan.used_words);
  return space.weight;
}

// Four, two or one of those that are left.
template <class Epilogue>
int products_at_once(int left) {
  const int most = left < Epilogue::kProducts ? left : Epilogue::kProducts;
  return most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

template <class Level, class Epilogue>
void run_tile(const Plan& plan, const Chunk& chunk, const Workspace& space, const Block& block, const uint32_t* weight,
              int64_t first, int pixels, const Epilogue& epilogue) {
  const Geometry& g = *plan.call->geometry;
  alignas(64) uint32_t counts[Epilogue::kProducts * Level::kTile][kLanes];
  alignas(64) float partial[Level::kTile][kLanes];
  const uint32_t* places[Level::kTile];
  for (int pixel = 0; pixel < pixels; ++pixel)
    places[pixel] = chunk.view + space.offsets[first + pixel] + block.group * plan.group;
  Counted tile{counts, pixels,        first,       (chunk.image * plan.rows + chunk.first) * plan.columns + first,
               {},     space.classes, 0,           0,
               {},     block.channel, block.lanes, block.flip};
  for (; tile.product < plan.product_count; tile.product += tile.products) {
    tile.products = products_at_once<Epilogue>(plan.product_count - tile.product);
    for (int i = 0; i < tile.products; ++i) {
      const Product& product = plan.products[tile.product + i];
      uint32_t (*to)[kLanes] = counts + i * Level::kTile;
      if (product.pass_count == 0)
        memset(to, 0, static_cast<size_t>(pixels) * sizeof(counts[0]));
      else
        count_tile<Level>(
            {weight, plan.runs, product.passes, plan.run_count, product.pass_count, plan.fields, plan.step}, places,
            pixels, to);
      tile.windows[i] = space.windows + (product.activation_term * g.groups + block.group) * chunk.pixels();
      tile.odd_sums[i] = product.odd_sum;
    }
    epilogue(tile, partial);
  }
}

template <class Level, class Epilogue>
void run_chunk(const Plan& plan, Chunk& chunk, const Workspace& space, int64_t first_unit, int64_t last_unit) {
  chunk.view = make_view(plan, chunk, space);
  count_windows(plan, chunk, space);
  place_pixels(plan, chunk, space);
  const Epilogue epilogue{*plan.call, plan.product_count};
  const Tiles<Level> tiles(chunk);
  for (int64_t unit = first_unit; unit < last_unit; ++unit) {
    const Block block = block_of(plan, unit);
    const uint32_t* weight = weight_of(plan, space, block);
    for (int64_t tile = 0; tile < tiles.count; ++tile) {
      const int64_t first = tiles.first(tile), last = tiles.first(tile + 1);
      run_tile<Level>(plan, chunk, space, block, weight, first, static_cast<int>(last - first), epilogue);
    }
  }
}

template <class Level, class Epilogue>
void run_part(const void* context, int part, int parts) {
  const Plan& plan = *static_cast<const Plan*>(context);
  const Workspace space = lay_out(plan, plan.workspace + plan.part_bytes * static_cast<size_t>(part));
  const int64_t all_rows = plan.images * plan.rows;
  const int64_t first_unit = plan.by_units ? plan.units * part / parts : 0;
  const int64_t last_unit = plan.by_units ? plan.units * (part + 1) / parts : plan.units;
  const int64_t last_row = plan.by_units ? all_rows : all_rows * (part + 1) / parts;
  if constexpr (Level::kRows) Level::open();
  for (int64_t row = plan.by_units ? 0 : all_rows * part / parts; row < last_row;) {
    const int64_t image = row / plan.rows, first = row % plan.rows;
    const int64_t taken = smaller(smaller(plan.rows - first, last_row - row), plan.chunk_rows);
    const int64_t columns = image + 1 == plan.images ? plan.last_columns : plan.columns;
    Chunk chunk{image, first, first + taken, columns, nullptr};
    run_chunk<Level, Epilogue>(plan, chunk, space, first_unit, last_unit);
    row += taken;
  }
  if constexpr (Level::kRows) Level::close();
}

inline bool classes_fit(const Conv2d& call) {
  if (call.row_class == nullptr) return true;
  const int64_t limit = call.classes;
  int64_t most_row = 0, most_column = 0, least = 0;
  for (int64_t y = 0; y < call.out_h; ++y) {
    most_row = call.row_class[y] > most_row ? call.row_class[y] : most_row;
    least = smaller(least, call.row_class[y]);
  }
  for (int64_t x = 0; x < call.out_w; ++x) {
    most_column = call.column_class[x] > most_column ? call.column_class[x] : most_column;
    least = smaller(least, call.column_class[x]);
  }
  return least >= 0 && most_row + most_column < limit;
}

// Place the shared tables at the head of the scratch and each thread's part behind them.
inline bool allocate(Plan& plan) {
  const Geometry& g = *plan.call->geometry;
  const size_t run_bytes = aligned(static_cast<size_t>(plan.taps) * sizeof(Run));
  const size_t pass_bytes = aligned(static_cast<size_t>(g.weight_strips * g.activation_strips) * sizeof(Pass));
  plan.product_count = g.weight_terms * g.activation_terms;
  const size_t product_bytes = aligned(static_cast<size_t>(plan.product_count) * sizeof(Product));
  plan.part_bytes = lay_out(plan, nullptr).bytes;
  const size_t shared = run_bytes + pass_bytes + product_bytes;
  char* memory = static_cast<char*>(scratch(shared + plan.part_bytes * static_cast<size_t>(plan.parts)));
  if (memory == nullptr) return false;
  Run* runs = reinterpret_cast<Run*>(memory);
  Pass* passes = reinterpret_cast<Pass*>(memory + run_bytes);
  Product* products = reinterpret_cast<Product*>(memory + run_bytes + pass_bytes);
  plan.run_count = fill_runs(plan, runs);
  plan.step = step_of(runs[0].words);
  fill_products(plan, products, passes);
  plan.runs = runs;
  plan.products = products;
  plan.workspace = memory + shared;
  return true;
}

template <class Level>
Status conv2d(const Conv2d& call) {
  if (call.n * call.out_h * call.out_w == 0) return Status::ok;
  if (!classes_fit(call)) return Status::class_out_of_range;
  Plan plan{};
  plan.call = &call;
  set_extents(plan);
  set_strides(plan);
  plan.fields = call.geometry->narrow > 0 && call.geometry->narrow == Level::kFields;
  plan.widens = call.geometry->narrow > 0 && !plan.fields;
  share_out(plan, Level::kWordsPerMicrosecond);
  if (!allocate(plan)) return Status::no_memory;
  const Work work = call.integers != nullptr ? run_part<Level, StoreIntegers<Level>>
                    : call.values != nullptr ? run_part<Level, StoreValues<Level, false>>
                    : call.codes != nullptr  ? run_part<Level, StoreValues<Level, true>>
                                             : run_part<Level, StoreDigits<Level>>;
  run_parts(plan.parts, work, &plan);
  return Status::ok;
}

}  // namespace
}  // namespace binarize
